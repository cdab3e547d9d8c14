"""Which values of an artifact are the output of a torch module, and in which layout."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from math import prod
from typing import NamedTuple

from torch import Tensor

from md_export.targets.contract import Step


def outputs_by_module(steps: Sequence[Step], paths: Collection[str]) -> Mapping[str, tuple[str, ...]]:
    """For each module path the values that its operations compute for others: those that may be its output."""
    inside: dict[str, set[int]] = defaultdict(set)
    for number, step in enumerate(steps):
        for path in _with_parents(step.modules[0]) if step.modules else ("",):
            inside[path].add(number)
    readers: dict[str, set[int]] = defaultdict(set)
    for number, step in enumerate(steps):
        for name in step.inputs:
            readers[name].add(number)
    return {path: tuple(_leaving(steps, inside[path], readers)) for path in paths if inside[path]}


def _with_parents(path: str) -> Iterator[str]:
    while path:
        yield path
        path = path.rpartition(".")[0]
    yield ""


def _leaving(steps: Sequence[Step], own: set[int], readers: Mapping[str, set[int]]) -> Iterator[str]:
    for number in sorted(own):
        for name in steps[number].outputs:
            if not readers.get(name) or not readers[name] <= own:
                yield name


class Way(NamedTuple):
    """A value in a torch shape; ``exact`` if no axes were regrouped."""

    value: Tensor
    exact: bool


def arrangements(value: Tensor, shape: Sequence[int]) -> list[Way]:
    """``value`` in the given shape: channels where they are, moved from last to second, or from second to last.

    Those that only add or drop axes of length 1 come alone where there are any.
    """
    if value.numel() != prod(shape):
        return []
    views = [value]
    if value.ndim > 2:
        views += [value.movedim(-1, 1), value.movedim(1, -1)]
    exact = [view for view in views if _squeezed(view.shape) == _squeezed(shape)]
    return [Way(view.reshape(tuple(shape)), bool(exact)) for view in exact or views]


def _squeezed(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)
