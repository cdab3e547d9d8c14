"""Run a corpus of operations through two targets in float16 and compare both with float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from md_export.errors import MdExportError, RuntimeFault
from md_export.parity.metrics import snr_db
from md_export.spec.scheme import QuantScheme
from md_export.spec.tensors import TensorSpec
from md_export.system.isolation import isolated
from md_export.targets import TARGETS
from md_export.targets.execution import answer_of


class _Apply(nn.Module):
    """Module that calls a function of tensors."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self._function = function

    def forward(self, *values: Tensor) -> Tensor:
        """Return the function's result."""
        made: Tensor = self._function(*values)
        return made


@dataclass(frozen=True)
class Operation:
    """One operation of the corpus.

    Attributes:
        name: title in the table.
        make: builds the module, with weights if it has any.
        shapes: shapes of the inputs.
        scale, shift: applied to inputs drawn from a normal distribution; at a ``shift`` of 999 they are multiples of a
            half.
    """

    name: str
    make: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...]
    scale: float = 1.0
    shift: float = 0.0

    def module(self) -> nn.Module:
        """Build the module in eval mode and float32, with the same weights each time, all of them float16 values."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            made: nn.Module = self.make().eval().requires_grad_(False)
        for parameter in made.parameters():
            parameter.copy_(parameter.half().float())
        return made

    def inputs(self) -> tuple[Tensor, ...]:
        """Draw the inputs: float32 tensors that hold float16 values, the same each time."""
        generator = torch.Generator().manual_seed(1)
        drawn = (torch.randn(shape, generator=generator) for shape in self.shapes)
        return tuple((self.shift + self.scale * value).half().float() for value in drawn)


def _of(function: Callable[..., Tensor]) -> Callable[[], nn.Module]:
    return lambda: _Apply(function)


def _norm(kind: Callable[..., nn.Module], *sizes: int) -> Callable[[], nn.Module]:
    """Return a builder of norms whose factors and shifts are not ones and zeros."""

    def make() -> nn.Module:
        made = kind(*sizes)
        nn.init.normal_(made.get_parameter("weight"), 1.0, 0.2)
        nn.init.normal_(made.get_parameter("bias"), 0.0, 0.2)
        return made

    return make


def _attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    scores: Tensor = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1)
    return scores @ value


_MAP, _TOKENS, _HEADS = (1, 32, 16, 16), (1, 77, 64), (1, 4, 64, 32)

OPERATIONS: Final = (
    Operation("add", _of(torch.add), (_MAP, _MAP)),
    Operation("mul", _of(torch.mul), (_MAP, _MAP)),
    Operation("matmul", _of(torch.matmul), ((1, 4, 64, 32), (1, 4, 32, 64))),
    Operation("linear", lambda: nn.Linear(64, 96), (_TOKENS,)),
    Operation("conv 3×3", lambda: nn.Conv2d(32, 48, 3, padding=1), (_MAP,)),
    Operation("conv 1×1", lambda: nn.Conv2d(32, 48, 1), (_MAP,)),
    Operation("conv depthwise", lambda: nn.Conv2d(32, 32, 3, padding=1, groups=32), (_MAP,)),
    Operation("conv stride 2", lambda: nn.Conv2d(32, 48, 3, stride=2, padding=1), (_MAP,)),
    Operation("group norm", _norm(nn.GroupNorm, 8, 32), (_MAP,)),
    Operation("group norm, mean 30", _norm(nn.GroupNorm, 8, 32), (_MAP,), shift=30.0),
    Operation("layer norm", _norm(nn.LayerNorm, 64), (_TOKENS,)),
    Operation("layer norm, mean 30", _norm(nn.LayerNorm, 64), (_TOKENS,), shift=30.0),
    Operation("softmax", _of(lambda x: x.softmax(-1)), ((1, 4, 64, 77),)),
    Operation("softmax, scores of 30", _of(lambda x: x.softmax(-1)), ((1, 4, 64, 77),), scale=10.0),
    Operation("attention", _of(_attention), (_HEADS, _HEADS, _HEADS)),
    Operation("silu", _of(F.silu), (_MAP,), scale=3.0),
    Operation("gelu", _of(F.gelu), (_MAP,), scale=3.0),
    Operation("sigmoid", _of(torch.sigmoid), (_MAP,), scale=3.0),
    Operation("exp", _of(torch.exp), (_MAP,)),
    Operation("rsqrt", _of(lambda x: torch.rsqrt(x * x + 1)), (_MAP,)),
    Operation("mean", _of(lambda x: x.mean(-1, keepdim=True)), (_TOKENS,)),
    Operation("upsample ×2", _of(lambda x: F.interpolate(x, scale_factor=2.0, mode="nearest")), (_MAP,)),
    Operation("sin at 999", _of(torch.sin), ((1, 256),), scale=5.0, shift=999.0),
    Operation("cos at 999", _of(torch.cos), ((1, 256),), scale=5.0, shift=999.0),
)


# Our runtime for Core ML programs, and Apple's for Core AI.
PAIR: Final = ("coreml", "coreai")
Floats = NDArray[np.float64]
_HALF: Final = QuantScheme("float16", "float16")


@dataclass(frozen=True)
class OperationRow:
    """One operation in both runtimes.

    Attributes:
        snr_db: SNR of each runtime's output against float64; None if there is no output, see ``fault``.
        steps: largest distance of each output from float64, counted in distances between neighbouring float16 values at
            the value's magnitude, or at the root mean square if that is larger.
        equal: share of the values on which both runtimes agree to the last bit of float16.
        apart: largest distance between the two outputs, in the same unit as ``steps``.
    """

    name: str
    snr_db: tuple[float, float] | None = None
    steps: tuple[float, float] | None = None
    equal: float | None = None
    apart: float | None = None
    fault: str = ""


def crosscheck_operations(progress: Callable[[str], None] = lambda _: None) -> list[OperationRow]:
    """Compare all operations of the corpus in a separate process.

    Raises:
        MissingExtraError: the libraries of a target are not installed.
    """
    for target in PAIR:
        TARGETS[target].require()
    progress(f"{len(OPERATIONS)} operations by {' and '.join(PAIR)}")
    return isolated(rows, RuntimeFault, "the corpus of operations")(())


def rows(names: tuple[str, ...] = ()) -> list[OperationRow]:
    """Compare the named operations, or all of them, in this process."""
    wanted = frozenset(names)
    return [_row(item) for item in OPERATIONS if not wanted or item.name in wanted]


def _row(operation: Operation) -> OperationRow:
    with torch.no_grad():
        exact = operation.module().double()(*(value.double() for value in operation.inputs())).numpy()
    try:
        first, second = (answer(operation, target).astype(np.float64) for target in PAIR)
    except MdExportError as error:
        return OperationRow(operation.name, fault=str(error))
    return judged(operation.name, first, second, exact)


def judged(name: str, first: Floats, second: Floats, exact: Floats) -> OperationRow:
    """Return the row that compares two outputs with the exact one; all are float64 arrays of one shape."""
    # A sum near zero has the error of its terms, so the distance unit is never finer than at the root mean square.
    magnitude = np.maximum(np.abs(exact), np.sqrt(np.mean(np.square(exact))))
    unit = np.spacing(magnitude.astype(np.float16)).astype(np.float64)

    def farthest(one: Floats, other: Floats) -> float:
        return float((np.abs(one - other) / unit).max())

    return OperationRow(
        name,
        snr_db=(snr_db(first, exact), snr_db(second, exact)),
        steps=(farthest(first, exact), farthest(second, exact)),
        equal=float((first.astype(np.float16) == second.astype(np.float16)).mean()),
        apart=farthest(first, second),
    )


def answer(operation: Operation, target: str) -> Any:
    """Return the output of a target's runtime for the operation's inputs, float32.

    Raises:
        MdExportError: the operation cannot be converted or does not run.
    """
    module, values, opened = operation.module(), operation.inputs(), TARGETS[target].open()
    given = {f"x{number}": value.numpy() for number, value in enumerate(values)}
    with torch.no_grad():
        shape = tuple(module(*values).shape)
    return answer_of(opened, TARGETS[target].suffix, module, given, TensorSpec("made", shape, "float32"), _HALF)
