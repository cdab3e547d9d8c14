"""What float16 sums would make of each component: the arithmetic of a GPU, carried out one rounding after another.

    python benchmarks/tflite_float16.py [RECIPE [CASES]]

By default recipe tflite-fp16 and 4 golden cases of the nano checkpoint. The torch module with the recipe's rewrites is
run three ways: every value rounded to float16 and sums in float32; convolutions and matrix products added in float16 by
fours and those in float32; every product and every sum of them rounded to float16, in the order of the weights. Norms'
means and softmax are added in float32 throughout. No file and no engine is involved: it is an estimate, end to end, of
what md-export lint bounds for each op.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from md_export.checkpoint import open_checkpoint
from md_export.parity.golden.folder import read_golden
from md_export.parity.metrics import compare
from md_export.parity.rewritten_module import Rewritten, rewritten
from md_export.spec.recipe_file import load_recipe
from md_export.spec.shipped_files import builtin_recipe, nano_checkpoint

# Terms added in float16 before float32 takes over; None for all of them.
Block = int | None
WAYS: Final[Mapping[str, Block]] = {"float32 sums": 1, "float32 sums of four": 4, "float16 sums": None}


def added(left: Tensor, right: Tensor, block: Block) -> Tensor:
    """``[..., n, rows, 1]`` and ``[..., n, 1, columns]``, float16 numbers → sums over n, as float16 numbers."""
    total: Tensor | None = None
    part: Tensor | None = None
    count = left.shape[-3]
    for place in range(count):
        product = left[..., place, :, :].half() * right[..., place, :, :].half()
        part = product if part is None else part + product
        if block is not None and (place + 1) % block == 0:
            total, part = part.float() if total is None else total + part.float(), None
    if part is not None:
        total = part.float() if total is None else total + part.float()
    assert total is not None
    return total.half().float()


def matmul(left: Tensor, right: Tensor, block: Block) -> Tensor:
    return added(left.mT[..., None], right[..., None, :], block)


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    block: Block,
) -> Tensor:
    """The bias is one more term, times 1."""
    sides = [(side, side) if isinstance(side, int) else tuple(side) for side in (stride, padding, dilation)]
    columns = F.unfold(x, weight.shape[2:], sides[2], sides[1], sides[0])
    batch, _, pixels = columns.shape
    columns = columns.reshape(batch, groups, -1, pixels)
    rows = weight.reshape(groups, weight.shape[0] // groups, -1)
    if bias is not None:
        columns = torch.cat([columns, columns.new_ones(batch, groups, 1, pixels)], 2)
        rows = torch.cat([rows, bias.reshape(groups, -1, 1)], 2)
    reach = [step * (kernel - 1) + 1 for step, kernel in zip(sides[2], weight.shape[2:], strict=True)]
    height, width = (
        (size + 2 * padded - reached) // step + 1
        for size, padded, reached, step in zip(x.shape[2:], sides[1], reach, sides[0], strict=True)
    )
    return matmul(rows[None], columns, block).reshape(batch, -1, height, width)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, block: Block) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])
    made = conv2d(rows.T[None, :, :, None], weight[:, :, None, None], bias, block=block)
    return made[0, :, :, 0].T.reshape(*x.shape[:-1], -1)


_SUMS: Final[Mapping[Any, Callable[..., Tensor]]] = {
    torch.conv2d: conv2d,
    F.linear: linear,
    torch.matmul: matmul,
    torch.bmm: matmul,
    Tensor.matmul: matmul,
    Tensor.__matmul__: matmul,
    Tensor.bmm: matmul,
}


class Float16(TorchFunctionMode):
    """Every call's result is rounded to float16; products are added as ``block`` says."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.block = block

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        own = _SUMS.get(func) if self.block != 1 else None
        made = own(*args, **kwargs or {}, block=self.block) if own else func(*args, **kwargs or {})
        if isinstance(made, Tensor) and made.dtype == torch.float32:
            return made.half().float()
        return made


def worst_db(part: Rewritten, cases: Sequence[Any], block: Block) -> float:
    """Against the golden outputs, which are float32."""
    found = []
    for case in cases:
        with Float16(block):
            made = part.run(part.inputs_of(case))
        found.append(compare(made, part.output_of(case)).snr_db)
    return min(found)


def main(name: str, count: int) -> None:
    """Print one row per component, in dB."""
    recipe, checkpoint = load_recipe(builtin_recipe(*name.split("-", 1))), open_checkpoint(nano_checkpoint())
    cases = read_golden(nano_checkpoint() / "golden").cases[:count]
    print(f"| component, {count} golden cases | {' | '.join(WAYS)} |")
    print("|---" + "|---:" * len(WAYS) + "|")
    for component in recipe.components:
        part = rewritten(checkpoint, component, recipe)
        part.module.half().float()
        figures = (worst_db(part, cases, block) for block in WAYS.values())
        print(f"| {component} | {' | '.join(f'{figure:.1f}' for figure in figures)} |", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(2)
    main(sys.argv[1] if len(sys.argv) > 1 else "tflite-fp16", int(sys.argv[2]) if len(sys.argv) > 2 else 4)
