"""What can be asked of one operation of a program, for the rules."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from md_export.targets.coreai.facts import Edge, OpFacts

MOVES: Final = frozenset({"reshape", "transpose"})
_ATTENTION: Final = "scaled_dot_product_attention"
_LARGEST: Final = float(np.finfo(np.float16).max)
# Half of the least number above zero; float16 rounds what is not above it to zero.
_VANISHES: Final = float(np.finfo(np.float16).smallest_subnormal) / 2


def has(op: OpFacts, *dtypes: str) -> bool:
    """Whether it takes or gives a value of one of the types."""
    return any(edge.dtype in dtypes for edge in op.edges)


def rank_over(op: OpFacts, limit: int) -> bool:
    """Whether it takes or gives a value of more dimensions."""
    return any(len(edge.shape) > limit for edge in op.edges)


def last_axes(op: OpFacts) -> Iterator[int]:
    """Of values that live while the program runs; weights are laid out when it is compiled."""
    return (size for edge in op.writes if not op.decodes and (size := _last(edge)) is not None)


def _last(edge: Edge) -> int | None:
    return edge.shape[-1] if edge.shape else None


def moves_last_axis(op: OpFacts) -> bool:
    """Whether a reshape or transpose leaves another axis last, or another length of it."""
    if op.kind not in MOVES or not op.reads[0]:
        return False
    if op.kind == "transpose":
        order = op.parameter(1)
        return bool(order) and order[-1] != len(order) - 1
    return _last(op.reads[0]) != _last(op.writes[0])


def softmax_axis(op: OpFacts) -> int | None:
    """Counted from the end: -1 is the last."""
    axis = op.parameter(1) if op.kind == "softmax" else ()
    rank = len(op.writes[0].shape)
    return (axis[0] % rank) - rank if axis and rank else None


def heads_together(op: OpFacts) -> bool:
    """Scores of several heads, ``[batch, heads, queries, keys]``, in one softmax."""
    shape = op.writes[0].shape
    return op.kind == _ATTENTION or (softmax_axis(op) == -1 and len(shape) == 4 and shape[1] != 1)


def _floats(op: OpFacts) -> Iterator[Edge]:
    return (edge for edge in op.constants if edge and not op.decodes and edge.dtype.startswith("float"))


def holds_infinity(op: OpFacts) -> bool:
    """Whether one of its constants has an infinite number."""
    return any(bool(np.isinf(edge.values()).any()) for edge in _floats(op))


def passes_float16(op: OpFacts) -> bool:
    """Whether a constant of a wider type has a finite number that float16 stores as infinity."""
    values = (np.abs(edge.values()) for edge in _floats(op) if edge.bits > 16)
    return any(bool((np.isfinite(value) & (value > _LARGEST)).any()) for value in values)


def vanishes(op: OpFacts) -> bool:
    """A single number: among many weights some are always next to nothing."""
    numbers = (abs(float(edge.values().flat[0])) for edge in _floats(op) if edge.shape in ((), (1,)))
    return any(0 < number <= _VANISHES for number in numbers)


def strides(op: OpFacts) -> tuple[int, ...]:
    """Of a convolution; none of anything else."""
    return op.parameter(2) if op.kind == "conv2d" else ()


def has_other_factors(number: int) -> bool:
    """Than 2 and 3."""
    for factor in (2, 3):
        while number and number % factor == 0:
            number //= factor
    return number > 1


def is_in_blocks(op: OpFacts) -> bool:
    """One scale for a part of a channel: neither for a whole axis nor for one element of it."""
    if op.kind != "blockwise_shift_scale" or not op.constants[1]:
        return False
    pairs = zip(op.constants[1].shape, op.writes[0].shape, strict=False)
    return any(1 < (scales or 1) < (size or 1) for scales, size in pairs)
