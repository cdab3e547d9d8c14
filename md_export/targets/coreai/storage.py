"""How an asset stores one layer's weight: what shares a scale or a table."""

from __future__ import annotations

from math import prod

from torch import nn

from md_export.spec.scheme import QuantScheme
from md_export.spec.weight_storage import WeightStorage, largest_divisor, per_channel, per_tensor


def weight_storage(path: str, layer: nn.Module, scheme: QuantScheme) -> WeightStorage | None:
    """How :func:`quantize` stores a layer's weight; ``scheme`` is the module's own, without rules. None: in float.

    The table of positions is folded to a constant that is added, and no weight.
    """
    if not isinstance(layer, nn.Conv2d | nn.Linear | nn.Embedding) or path.endswith("position_embedding"):
        return None
    return storage_of(tuple(layer.weight.shape), scheme)


def storage_of(shape: tuple[int, ...], scheme: QuantScheme) -> WeightStorage | None:
    """Of a weight of this shape, ``[out, in, *kernel]``; None where it stays float.

    Where a block or group does not divide the channels, the largest divisor above half of it is taken, and else all of
    them. A weight that a palette would not make smaller stays float.
    """
    if scheme.weights.startswith("float"):
        return None
    width = 16 if scheme.activations == "float16" else 32
    if scheme.palette_bits is None:
        bits = int(scheme.weights.removeprefix("int"))
        return WeightStorage(bits, _scales(shape, scheme), levels=2 ** (bits - 1) - 1, scale_bits=width)
    tables = per_tensor(shape)
    if scheme.group_size is not None:
        tables = (shape[0] // largest_divisor(shape[0], scheme.group_size), *tables[1:])
    storage = WeightStorage(scheme.palette_bits, tables, entries=2**scheme.palette_bits, scale_bits=width)
    return storage if storage.stored_bits(shape) < width * prod(shape) else None


def _scales(shape: tuple[int, ...], scheme: QuantScheme) -> tuple[int, ...]:
    if scheme.block_size is not None:
        return (shape[0], shape[1] // largest_divisor(shape[1], scheme.block_size), *[1] * (len(shape) - 2))
    return per_tensor(shape) if scheme.granularity == "tensor" else per_channel(shape)
