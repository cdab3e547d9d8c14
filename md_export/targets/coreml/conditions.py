"""What the conditions of the rule file mean: one function per word of the vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any, Final

import torch

from md_export.targets.coreml.facts import OpFacts
from md_export.targets.coreml.rules import When

# Parameter of an operation, under the names that its versions use.
_SCALES: Final = ("scale_factor_height", "scale_factor_width")


def fits(op: OpFacts, when: When) -> bool:
    """Whether all conditions that are given hold for ``op``."""
    return all(CONDITIONS[name](op, limit) for name, limit in when.given().items())


def _kinds(op: OpFacts, globs: tuple[str, ...]) -> bool:
    return any(fnmatchcase(op.kind, glob) for glob in globs)


def _dtypes(op: OpFacts, names: tuple[str, ...]) -> bool:
    return any(edge.type is not None and edge.type.dtype.name in names for edge in (*op.reads, *op.writes))


def _rank_over(op: OpFacts, limit: int) -> bool:
    return any(len(edge.shape) > limit for edge in (*op.reads, *op.writes))


def _dynamic(op: OpFacts, _: object) -> bool:
    return any(edge.type is not None and (edge.type.shape is None or None in edge.shape) for edge in op.writes)


def _last_axes(op: OpFacts) -> Iterator[int]:
    """Of values that live while the program runs; weights are laid out when it is compiled."""
    if op.kind.startswith("constexpr_"):
        return iter(())
    return (edge.shape[-1] for edge in op.writes if edge.shape and edge.shape[-1] is not None)


def _last_axis_from(op: OpFacts, limit: int) -> bool:
    return any(size >= limit for size in _last_axes(op))


def _last_axis_below(op: OpFacts, limit: int) -> bool:
    return any(size < limit for size in _last_axes(op))


def _moves_last_axis(op: OpFacts, _: object) -> bool:
    order = op.parameter("perm")
    if isinstance(order, torch.Tensor):
        return int(order[-1]) not in (-1, len(order) - 1)
    before, after = (edges[0].shape for edges in (op.reads or op.writes, op.writes))
    return before[-1:] != after[-1:]


def _axis_among_last(op: OpFacts, count: int) -> bool:
    axis, rank = op.parameter("axis"), len(op.writes[0].shape)
    # MIL's softmax defaults to the last axis.
    place = int(axis) if isinstance(axis, torch.Tensor) else -1
    return (place if place >= 0 else place + rank) >= rank - count


def _numbers(op: OpFacts, *names: str) -> list[float]:
    values = [op.parameter(name) for name in names]
    return [float(item) for value in values if isinstance(value, torch.Tensor) for item in value.reshape(-1)]


def _over(*names: str) -> Callable[[OpFacts, float], bool]:
    return lambda op, limit: any(number > limit for number in _numbers(op, *names))


def _stride_factor_over(op: OpFacts, limit: int) -> bool:
    return any(_largest_factor(int(stride)) > limit for stride in _numbers(op, "strides"))


def _largest_factor(number: int) -> int:
    largest, divisor = 1, 2
    while number > 1:
        if number % divisor:
            divisor += 1
        else:
            number //= divisor
            largest = divisor
    return largest


def _infinite_constant(op: OpFacts, _: object) -> bool:
    return any(value.is_floating_point() and bool(value.isinf().any()) for value in op.constants())


def _scale_per_block(op: OpFacts, _: object) -> bool:
    scale, shape = op.parameter("scale"), op.writes[0].shape
    if not isinstance(scale, torch.Tensor):
        return False
    return any(1 < scales < (size or 1) for scales, size in zip(scale.shape, shape, strict=False))


CONDITIONS: Final[Mapping[str, Callable[[OpFacts, Any], bool]]] = {
    "kinds": _kinds,
    "other_than": lambda op, globs: not _kinds(op, globs),
    "dtypes": _dtypes,
    "rank_over": _rank_over,
    "dynamic": _dynamic,
    "last_axis_from": _last_axis_from,
    "last_axis_below": _last_axis_below,
    "moves_last_axis": _moves_last_axis,
    "axis_among_last": _axis_among_last,
    "stride_factor_over": _stride_factor_over,
    "stride_over": _over("strides"),
    "kernel_over": _over("kernel_sizes"),
    "dilation_over": _over("dilations"),
    "scale_over": _over(*_SCALES),
    "infinite_constant": _infinite_constant,
    "scale_per_block": _scale_per_block,
}
