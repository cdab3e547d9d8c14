"""How one weight is stored in a file: which elements share a scale or a table, and how many bits that costs."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from md_export.spec.scheme import QuantScheme


@dataclass(frozen=True)
class WeightStorage:
    """A weight as integers times scales, or as indices into tables.

    Attributes:
        bits: of one element.
        groups: on how many parts each axis of the weight, in torch's layout, is cut; what lies in one part of each
            shares a scale or a table. A divisor of the axis each.
        levels: the largest integer, the smallest being its negative: 127, 7; 0 for a table.
        entries: of a table; 0 for integers.
        scale_bits: of a scale, or of an entry of a table.
    """

    bits: int
    groups: tuple[int, ...]
    levels: int = 0
    entries: int = 0
    scale_bits: int = 32

    def stored_bits(self, shape: tuple[int, ...]) -> int:
        """Return the bits of a weight of this shape, scales and tables included."""
        return self.bits * prod(shape) + prod(self.groups) * max(1, self.entries) * self.scale_bits


def per_channel(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the groups for one scale per output channel."""
    return (shape[0], *[1] * (len(shape) - 1))


def per_tensor(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the groups for one scale or table."""
    return (1,) * len(shape)


def largest_divisor(channels: int, wanted: int) -> int:
    """Return the largest divisor of ``channels`` in (wanted / 2, wanted], or ``channels`` if there is none."""
    return next((size for size in range(wanted, wanted // 2, -1) if channels % size == 0), channels)


def integer_storage(shape: tuple[int, ...], scheme: QuantScheme, scale_bits: int) -> WeightStorage:
    """Storage of a weight ``[out, in, *kernel]`` as symmetric integers.

    Where a block does not divide the input channels, the largest divisor above half of it is taken, and else the whole
    channel.
    """
    groups = per_tensor(shape) if scheme.granularity == "tensor" else per_channel(shape)
    if scheme.block_size is not None:
        groups = (shape[0], shape[1] // largest_divisor(shape[1], scheme.block_size), *groups[2:])
    bits = int(scheme.weights.removeprefix("int"))
    return WeightStorage(bits, groups, levels=2 ** (bits - 1) - 1, scale_bits=scale_bits)


def palette_storage(shape: tuple[int, ...], scheme: QuantScheme, scale_bits: int) -> WeightStorage:
    """Storage of a weight ``[out, in, *kernel]`` as indices into one table, or one for each group of output channels.

    A group that does not divide the channels becomes smaller as a block does in :func:`integer_storage`.
    """
    groups, bits = per_tensor(shape), scheme.palette_bits or 0
    if scheme.group_size is not None:
        groups = (shape[0] // largest_divisor(shape[0], scheme.group_size), *groups[1:])
    return WeightStorage(bits, groups, entries=2**bits, scale_bits=scale_bits)
