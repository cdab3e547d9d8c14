"""How a file stores one weight: what shares a scale."""

from __future__ import annotations

from typing import Final

from torch import nn

from md_export.spec.scheme import QuantScheme
from md_export.spec.weight_storage import WeightStorage, largest_divisor, per_channel, per_tensor

_INTEGERS: Final = ("int8", "int4")


def weight_storage(path: str, layer: nn.Module, scheme: QuantScheme) -> WeightStorage | None:
    """How :func:`quantize` stores a layer's weight; ``scheme`` is the module's own, without rules. None: in float.

    The table of positions is folded to a constant that is added, and no weight.
    """
    if not isinstance(layer, nn.Conv2d | nn.Linear | nn.Embedding) or path.endswith("position_embedding"):
        return None
    if scheme.weights not in _INTEGERS or (isinstance(layer, nn.Embedding) and not fits_table(scheme)):
        return None
    return integer_storage(tuple(layer.weight.shape), scheme)


def fits_table(scheme: QuantScheme) -> bool:
    """Whether an embedding's rows can be looked up so: Gather takes whole bytes, and each row has one scale."""
    return scheme.weights != "int4" and scheme.block_size is None


def integer_storage(shape: tuple[int, ...], scheme: QuantScheme) -> WeightStorage:
    """Of a weight of this shape, ``[out, in, *kernel]``, as int8 or int4.

    Where a block does not divide the input channels, the largest divisor above half of it is taken, and else the whole
    channel.
    """
    if scheme.block_size is not None:
        groups = (shape[0], shape[1] // largest_divisor(shape[1], scheme.block_size), *[1] * (len(shape) - 2))
    else:
        groups = per_tensor(shape) if scheme.granularity == "tensor" else per_channel(shape)
    bits = int(scheme.weights.removeprefix("int"))
    scale_bits = 16 if scheme.activations == "float16" else 32
    return WeightStorage(bits, groups, levels=2 ** (bits - 1) - 1, scale_bits=scale_bits)
