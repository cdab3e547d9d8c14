"""Run a torch module on an artifact's values: each inner module gets the artifact's value as its input.

Each module's output is compared with the artifact's value and then replaced by it. The comparison therefore covers only
the module's own arithmetic (with its parts, if they were not found), and no map of inputs is needed. The candidates
for a module's output follow from the artifact's operations; the layout of each is found by its shape.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from md_export.parity.metrics import EXACT_DB, snr_db
from md_export.spec.tensors import Arrays
from md_export.targets.stored_graph import Step


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


class Arrangement(NamedTuple):
    """A value in a torch shape; ``exact`` if no axes were regrouped."""

    value: Tensor
    exact: bool


def arrangements(value: Tensor, shape: Sequence[int]) -> list[Arrangement]:
    """List the ways to give ``value`` a shape: channels in place, moved from last to second, or from second to last.

    If some ways only add or drop axes of length 1, only these are returned.
    """
    if value.numel() != prod(shape):
        return []
    views = [value]
    if value.ndim > 2:
        views += [value.movedim(-1, 1), value.movedim(1, -1)]
    exact = [view for view in views if _squeezed(view.shape) == _squeezed(shape)]
    return [Arrangement(view.reshape(tuple(shape)), bool(exact)) for view in exact or views]


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


# A value with regrouped axes is accepted as a module's output only from this SNR in dB; a right one has far more.
_LEAST_AGREEMENT_DB = 6.0


@dataclass(frozen=True)
class Seen:
    """A module's output in an artifact.

    Attributes:
        cumulative_snr_db, local_snr_db: see :class:`.attribute.ModuleError`.
        value: name of the artifact's value.
        error: the artifact's value minus the module's output for the artifact's input, in torch's shape.
        peak: see :class:`.attribute.ModuleError`.
    """

    path: str
    cumulative_snr_db: float
    local_snr_db: float
    error: Tensor
    peak: float
    value: str


class Walker:
    """A torch module with its inputs and outputs, to compare artifacts with.

    Attributes:
        outputs: torch's outputs by path, in order of completion.
        kinds: class of each module, by path.
        leaves: modules without parts.
        owners: modules that own parameters themselves.
    """

    def __init__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._module = module
        self._inputs = inputs
        self.outputs, self._output = outputs_of(module, inputs)
        self.kinds = {path: type(child).__name__.removeprefix("Adapted") for path, child in module.named_modules()}
        called = [(path, child) for path, child in module.named_modules() if path in self.outputs]
        self.leaves = frozenset(path for path, child in called if not any(child.children()))
        self.owners = frozenset(path for path, child in called if any(True for _ in child.parameters(recurse=False)))

    def candidates(self, steps: tuple[Step, ...]) -> Mapping[str, tuple[str, ...]]:
        """Return the names of the artifact's values that may be a module's output, by path."""
        return outputs_by_module(steps, self.outputs)

    def walk(
        self, values: Arrays, candidates: Mapping[str, tuple[str, ...]], hidden: Collection[str] = ()
    ) -> dict[str, Seen]:
        """Return every module that was found, in order of completion; modules in ``hidden`` keep torch's output."""
        tensors = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in values.items()}
        found: dict[str, Seen] = {}

        def visit(path: str, output: Tensor) -> Tensor | None:
            if path in hidden or path not in self.outputs:
                return None
            best = _best({name: tensors[name] for name in candidates.get(path, ())}, output)
            if best is None:
                return None
            name, value = best
            cumulative, peak = _snr(value, self.outputs[path]), float(value.abs().max())
            found[path] = Seen(path, cumulative, _snr(value, output), value - output, peak, name)
            # After a NaN, no later module could be compared.
            return value if bool(value.isfinite().all()) else None

        follow(self._module, self._inputs, visit)
        return found

    def alone(self, seen: Seen) -> float:
        """Return the SNR of the component's output with only this module's error."""
        if not bool(seen.error.isfinite().all()):
            return -EXACT_DB
        output = follow(
            self._module, self._inputs, lambda path, value: value + seen.error if path == seen.path else None
        )
        return _snr(output, self._output)


def _best(values: Mapping[str, Tensor], output: Tensor) -> tuple[str, Tensor] | None:
    """Return the name and arrangement of the value closest to the module's output; None if no value is possible."""
    ways = [(name, way) for name, value in values.items() for way in arrangements(value, output.shape)]
    if len(ways) == 1 and ways[0][1].exact:
        return ways[0][0], ways[0][1].value
    ranked = sorted(ways, key=lambda one: (_snr(one[1].value, output), one[1].exact), reverse=True)
    name, best = next(iter(ranked), ("", None))
    if best is None or not (best.exact or _snr(best.value, output) >= _LEAST_AGREEMENT_DB):
        return None
    return name, best.value


def _snr(value: Tensor, reference: Tensor) -> float:
    return snr_db(value.numpy(), reference.numpy())
