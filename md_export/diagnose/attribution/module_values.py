"""Map torch modules to the values of an artifact that are their outputs, and find the layout of each value."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from math import prod
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from md_export.targets.contract import Step


def outputs_by_module(steps: Sequence[Step], paths: Collection[str]) -> Mapping[str, tuple[str, ...]]:
    """Map each module path to the values that leave it: the candidates for its output."""
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
    """List the ways to give ``value`` a shape: channels in place, moved from last to second, or from second to last.

    If some ways only add or drop axes of length 1, only these are returned.
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


# Modules that return their input unchanged.
_NOTHING: Final = (nn.Identity, nn.Dropout)
# Called with a module's path and output; the returned tensor replaces that output, None keeps it.
Visit = Callable[[str, Tensor], Tensor | None]


def follow(module: nn.Module, inputs: tuple[Tensor, ...], visit: Visit) -> Tensor:
    """Run ``module`` and visit every output inside it, in order of completion; the root's path is empty.

    Modules whose first output is not a tensor are skipped. Several outputs are returned as one flat tensor, in order.
    """
    with ExitStack() as hooks, torch.no_grad():
        for path, child in module.named_modules():
            if not isinstance(child, _NOTHING):
                hooks.callback(child.register_forward_hook(_hook(path, visit)).remove)
        output: Tensor | tuple[Tensor, ...] = module(*inputs)
    return torch.cat([value.flatten() for value in output]) if isinstance(output, tuple) else output


def _hook(path: str, visit: Visit) -> Any:
    def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        first = output[0] if isinstance(output, tuple) and output else output
        other = visit(path, first) if isinstance(first, Tensor) else None
        if other is None:
            return None
        return (other, *output[1:]) if isinstance(output, tuple) else other

    return hook


def outputs_of(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Mapping[str, Tensor], Tensor]:
    """Return the output of each module that is called exactly once, by path in order of completion, and the root's."""
    found: dict[str, Tensor] = {}
    calls: Counter[str] = Counter()

    def visit(path: str, value: Tensor) -> None:
        calls[path] += 1
        found[path] = value

    output = follow(module, inputs, visit)
    return {path: value for path, value in found.items() if calls[path] == 1}, output
