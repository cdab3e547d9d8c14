"""Find the weights among a program's constants, with the modules that read them."""

from __future__ import annotations

from math import prod
from typing import Any, Final, NamedTuple

import numpy as np
from torch import nn

from md_export.spec.scheme import QuantScheme, WeightStorage, integer_storage, palette_storage
from md_export.spec.tensors import Array
from md_export.targets.coreai.bindings import kind_of, module_of
from md_export.targets.coreai.constants import is_constant, shape_of
from md_export.targets.stored import Role

_MATRICES: Final = frozenset({("batch_matmul", 1), ("broadcasting_batch_matmul", 1)})
_PRODUCTS: Final = _MATRICES | {("conv2d", 1)}
MULTIPLIED: Final = _PRODUCTS | {("gather_nd", 0)}
# Role of an operand, by operation and position.
ROLES: Final[dict[tuple[str, int], Role]] = {
    **dict.fromkeys((*MULTIPLIED, ("group_norm", 1), ("layer_norm", 1), ("broadcasting_mul", 1)), "weight"),
    **dict.fromkeys((("group_norm", 2), ("layer_norm", 2), ("broadcasting_add", 1)), "bias"),
}
# Operations that decode stored weights to floats.
DECODERS: Final = ("blockwise_shift_scale", "lut_to_dense")


class Reader(NamedTuple):
    """An operation that reads a value.

    Attributes:
        position: position of the operand.
        transposes: whether the value is transposed first.
    """

    op: Any
    position: int
    transposes: bool = False

    @property
    def place(self) -> tuple[str, int]:
        """Kind of the operation and position of the operand, the key of the tables."""
        return kind_of(self.op), self.position

    @property
    def is_product(self) -> bool:
        """Whether the operation multiplies the value with its first operand: a convolution or a linear layer."""
        return self.place in _PRODUCTS

    @property
    def turned(self) -> bool:
        """Whether the value is ``[…, in, out]``: a linear layer reads it without a transposition."""
        return self.place in _MATRICES and not self.transposes


def readers_of(op: Any) -> list[Reader]:
    """Return the readers of an operation's first result."""
    found = []
    for use in op.results[0].uses:
        reader = Reader(getattr(use.owner, "operation", use.owner), int(use.operand_number))
        behind = readers_of(reader.op) if reader.place == ("transpose", 0) else []
        products = [inner._replace(transposes=True) for inner in behind if inner.place in _MATRICES]
        found += products or [reader]
    return found[::-1]


def weights_of(operations: list[Any]) -> dict[Any, list[Reader]]:
    """Return the constants and decoded values that are multiplied or looked up, with their readers."""
    found: dict[Any, list[Reader]] = {}
    for op in operations:
        if is_constant(op) and len(shape_of(op)) < 2:
            continue
        if is_constant(op) or kind_of(op) in DECODERS:
            readers = [reader for reader in readers_of(op) if reader.place in MULTIPLIED]
            found |= {op: readers} if readers else {}
    return found


def to_torch(values: Array, readers: list[Reader], rank: int = 2) -> Array:
    """Convert values, scales or tables to torch's layout; linear weights are stored ``[out, in]`` or ``[1, in, out]``.

    Args:
        values: values in the program's layout.
        readers: readers of the weight.
        rank: rank of the values without leading axes of length 1.
    """
    if not any(reader.turned for reader in readers):
        return values
    return np.swapaxes(values.reshape(values.shape[-rank:]), 0, 1)


def to_program(values: Array, readers: list[Reader], leading: int) -> Array:
    """Convert from torch's layout to the program's, with ``leading`` axes of length 1 in front."""
    if not any(reader.turned for reader in readers):
        return values
    return np.ascontiguousarray(np.swapaxes(values, 0, 1))[(None,) * leading]


def path_of(readers: list[Reader]) -> str:
    """Return the path of the first module that reads a weight; empty if not recorded."""
    return next((path for reader in readers if (path := module_of(reader.op)) is not None), "")


def weight_storage(path: str, layer: nn.Module, scheme: QuantScheme) -> WeightStorage | None:
    """Return how :func:`quantize` stores a layer's weight under the layer's ``scheme`` without rules; None: in float.

    The table of positions is folded into an added constant, so it is not a weight.
    """
    if not isinstance(layer, nn.Conv2d | nn.Linear | nn.Embedding) or path.endswith("position_embedding"):
        return None
    return storage_of(tuple(layer.weight.shape), scheme)


def storage_of(shape: tuple[int, ...], scheme: QuantScheme) -> WeightStorage | None:
    """Return the storage of a weight ``[out, in, *kernel]``; None if it stays float, or if a palette is not smaller."""
    if scheme.weights.startswith("float"):
        return None
    width = 16 if scheme.activations == "float16" else 32
    if scheme.palette_bits is None:
        return integer_storage(shape, scheme, width)
    storage = palette_storage(shape, scheme, width)
    return storage if storage.stored_bits(shape) < width * prod(shape) else None
