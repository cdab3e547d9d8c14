"""What a torch module computes and moves, operation by operation, without weights: for models that are not lowered.

Operations are those that torch dispatches on the meta device, attention in its plain form: products, softmax, product.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from md_export.targets.operations import OpCost, Work, multiplying

# Give a new view of the same memory, make a constant, or look at one number.
_FREE: Final = frozenset(
    {
        "view",
        "_unsafe_view",
        "reshape",
        "transpose",
        "t",
        "permute",
        "expand",
        "unsqueeze",
        "squeeze",
        "slice",
        "split",
        "split_with_sizes",
        "chunk",
        "select",
        "alias",
        "detach",
        "unbind",
        "lift_fresh",
        "empty",
        "arange",
        "zeros",
        "ones",
        "full",
        "full_like",
        "zeros_like",
        "ones_like",
        "new_ones",
        "new_full",
        "scalar_tensor",
        "triu",
        "triu_",
        "tril",
        "fill_",
        "argmax",
        "eq",
        "index",
        "is_same_size",
    }
)
_MOVES: Final = ("clone", "contiguous", "copy_")
_BITS_OF_PLAIN_FLOAT: Final = 32


def record(module: nn.Module, inputs: Iterable[Any], **named: Any) -> tuple[OpCost, ...]:
    """One for each operation of a call on the meta device; bytes are those of float32.

    Args:
        module: on the meta device.
        inputs, named: its arguments, tensors on the meta device.
    """
    recorder = _Recorder({id(tensor) for tensor in (*module.parameters(), *module.buffers())})
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), recorder:
        module(*inputs, **named)
    return tuple(recorder.found)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes each operation and lets it run."""

    def __init__(self, constants: set[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[OpCost] = []
        self._constants = constants

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = str(func._schema.name).partition("::")[2]
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        outs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        if name not in _FREE and outs:
            counter: Callable[..., int] | None = flop_registry.get(func._overloadpacket)
            macs = int(counter(*args, **(kwargs or {}), out_val=out)) // 2 if counter else 0
            self.found.append(self._cost(name, macs, tensors, outs[0]))
        return out

    def _cost(self, name: str, macs: int, given: list[Tensor], out: Tensor) -> OpCost:
        weights = [tensor for tensor in given if self._is_constant(tensor)]
        computed = [tensor for tensor in given if not self._is_constant(tensor)]
        looked_up = name == "embedding"
        constants = [out] if looked_up else weights
        return OpCost(
            kind=name,
            module="",
            work=_work(name, macs, given),
            macs=macs,
            arithmetic="float32",
            weights=sum(tensor.numel() for tensor in constants),
            weight_bytes=_bytes(constants),
            read_bytes=0 if looked_up else _bytes(computed),
            written_bytes=_bytes([out]),
        )

    def _is_constant(self, tensor: Tensor) -> bool:
        base: Tensor | None = tensor
        while base is not None:
            if id(base) in self._constants:
                return True
            base = base._base
        return False


def _work(name: str, macs: int, given: list[Tensor]) -> Work:
    if name == "convolution":
        return multiplying(math.prod(given[1].shape[2:]))
    if macs:
        return "matrix product"
    return "layout move" if name in _MOVES else "other"


def _bytes(tensors: list[Tensor]) -> int:
    return sum(tensor.numel() * _BITS_OF_PLAIN_FLOAT // 8 for tensor in tensors)
