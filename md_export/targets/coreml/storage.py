"""How a package stores one layer's weight: what shares a scale or a table."""

from __future__ import annotations

from math import prod
from typing import Final

from torch import nn

from md_export.spec.scheme import QuantScheme
from md_export.spec.weight_storage import WeightStorage, largest_divisor, per_channel, per_tensor

# Scales and tables are float16, as the weights that they stand for.
_BITS: Final = 16


def weight_storage(path: str, layer: nn.Module, scheme: QuantScheme) -> WeightStorage | None:
    """What ``compress`` makes of a weight; ``scheme`` is the module's own, without rules. None: it stays float.

    The table of positions is folded to a constant that is added, and no weight.
    """
    if not isinstance(layer, nn.Conv2d | nn.Linear | nn.Embedding) or path.endswith("position_embedding"):
        return None
    shape = tuple(layer.weight.shape)
    if scheme.weights.startswith("float") or not pays(shape, 0, _BITS // 8, scheme):
        return None
    if scheme.palette_bits:
        return WeightStorage(
            scheme.palette_bits, _tables(shape, scheme), entries=2**scheme.palette_bits, scale_bits=_BITS
        )
    bits = int(scheme.weights.removeprefix("int"))
    return WeightStorage(bits, _scales(shape, scheme), levels=2 ** (bits - 1) - 1, scale_bits=_BITS)


def pays(shape: tuple[int, ...], made: int, itemsize: int, scheme: QuantScheme) -> bool:
    """Whether indices and tables together are smaller than the values, both in bits.

    Args:
        shape: of the weight.
        made: axis of its output channels.
        itemsize: bytes of a value.
        scheme: everything but a palette pays.
    """
    if not scheme.palette_bits:
        return True
    tables = shape[made] // largest_divisor(shape[made], scheme.group_size) if scheme.group_size else 1
    kept, width = prod(shape) * (1 - (scheme.sparsity or 0)), 8 * itemsize
    return bool(kept * scheme.palette_bits + tables * 2**scheme.palette_bits * width < kept * width)


def _tables(shape: tuple[int, ...], scheme: QuantScheme) -> tuple[int, ...]:
    if scheme.group_size is None:
        return per_tensor(shape)
    return (shape[0] // largest_divisor(shape[0], scheme.group_size), *[1] * (len(shape) - 1))


def _scales(shape: tuple[int, ...], scheme: QuantScheme) -> tuple[int, ...]:
    if scheme.granularity == "tensor":
        return per_tensor(shape)
    if scheme.block_size is None:
        return per_channel(shape)
    return (shape[0], shape[1] // largest_divisor(shape[1], scheme.block_size), *[1] * (len(shape) - 2))
