"""Compare the graph of an artifact with that of a second lowering: operations, settings, wiring, constants.

A converter chooses the names of values, so names prove nothing. Each value is identified by its computation: the kind
of the operation, its settings, and the identities of its operands (a Merkle tree, like the commits of git).
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Final

import numpy as np

from md_export.parity.metrics import snr_db
from md_export.spec.tensors import Array
from md_export.targets.stored_graph import Step, StoredConstant, StoredGraph

# Tolerances for the same lowering on another processor: floats differ by rounding, some calibrated integers by one.
_LEAST_SNR_DB: Final = 60.0
_LEAST_EQUAL: Final = 0.9
_SCALAR: Final = 16
_CALIBRATED: Final = ("int8", "uint8", "int16", "uint16")
_MOST_NAMED: Final = 5


def graph_lines(found: StoredGraph, wanted: StoredGraph) -> Iterator[str]:
    """Yield a line for each difference of the artifact's graph ``found`` from the checkpoint's graph ``wanted``."""
    own, given = _Identified(found), _Identified(wanted)
    own.take_names(given)
    lines = [*_surface_lines(own, given), *_step_lines(own, given), *_constant_lines(own, given)]
    yield from lines or _wiring_lines(own, given)


class _Identified:
    """A graph with an identity for each constant and value, independent of names."""

    def __init__(self, graph: StoredGraph) -> None:
        self.graph = graph
        self.constants = {name: _digest(held) for name, held in graph.constants.items()}

    def take_names(self, other: _Identified) -> None:
        """Give a constant the identity of a close one of the other graph, unless this graph has that one, too."""
        free: dict[str, list[str]] = defaultdict(list)
        own = set(self.constants.values())
        for name, identity in other.constants.items():
            if identity not in own:
                free[other.graph.constants[name].dtype].append(name)
        known = set(other.constants.values())
        for name, held in self.graph.constants.items():
            if self.constants[name] not in known:
                values = held.read()
                alike = [one for one in free[held.dtype] if _is_close(values, other.graph.constants[one].read())]
                self.constants[name] = other.constants[alike[0]] if alike else self.constants[name]

    @cached_property
    def values(self) -> Mapping[str, str]:
        """Identity of every value by name: inputs, constants, results of operations."""
        found = {name: f"given {words}" for name, words in self.graph.inputs.items()} | self.constants
        for step in self.graph.steps:
            identity = _hashed(_words(step), *(found.get(name, "?") for name in step.inputs))
            found |= {name: f"{identity}#{place}" for place, name in enumerate(step.outputs)}
        return found

    @cached_property
    def steps(self) -> Mapping[tuple[str, ...], list[Step]]:
        """Operations by kind, settings and constants; computed operands are left out."""
        found: dict[tuple[str, ...], list[Step]] = defaultdict(list)
        for step in self.graph.steps:
            found[_words(step), *(self.constants.get(name, "a value") for name in step.inputs)].append(step)
        return found

    @cached_property
    def unread(self) -> Counter[str]:
        """Constants that no operation reads and that are not an output, by identity."""
        read = {name for step in self.graph.steps for name in step.inputs} | set(self.graph.outputs.values())
        return Counter(identity for name, identity in self.constants.items() if name not in read)


def _digest(held: StoredConstant) -> str:
    values = held.read()
    content = hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()
    return f"{held.dtype} {content}"


def _hashed(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _words(step: Step) -> str:
    return f"{step.kind} {sorted(step.settings.items())}"


def _is_close(one: Array, other: Array) -> bool:
    """Whether both can be one constant computed on two processors; shapes and axes must be equal."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if np.issubdtype(one.dtype, np.floating):
        return snr_db(one, other) >= _LEAST_SNR_DB
    if str(one.dtype) not in _CALIBRATED:
        return False
    if one.size <= _SCALAR:
        return bool(np.abs(one.astype(np.int32) - other.astype(np.int32)).max(initial=0) <= 1)
    return bool((one == other).mean() >= _LEAST_EQUAL)


def _surface_lines(own: _Identified, given: _Identified) -> Iterator[str]:
    for what, has, wants in (
        ("inputs", own.graph.inputs.values(), given.graph.inputs.values()),
        ("outputs", own.graph.outputs, given.graph.outputs),
        ("other fields", own.graph.rest.splitlines(), given.graph.rest.splitlines()),
    ):
        more, less = Counter(list(has)) - Counter(list(wants)), Counter(list(wants)) - Counter(list(has))
        if more or less:
            yield f"{what} of the graph: {_listed(more)}, the checkpoint gives {_listed(less)}"


def _step_lines(own: _Identified, given: _Identified) -> Iterator[str]:
    """Pair differing operations by kind and module, and yield the pairs, the extra and the missing operations."""
    more, less = _surplus(own, given), _surplus(given, own)
    strangers: list[Step] = []
    for step in more:
        partner = next((one for one in less if (one.kind, one.modules) == (step.kind, step.modules)), None)
        if partner is None:
            strangers.append(step)
        else:
            less.remove(partner)
            yield f"{_named(step)}: {_difference(own, step, given, partner)}"
    if strangers:
        yield f"operations of no module: {_listed(map(_named, strangers))}"
    if less:
        yield f"operations are missing: {_listed(map(_named, less))}"


def _surplus(one: _Identified, other: _Identified) -> list[Step]:
    """Return the operations that ``one`` has and ``other`` lacks or has less often, those of other modules first."""
    found: list[Step] = []
    for words, steps in one.steps.items():
        alike = other.steps.get(words, ())
        modules = Counter(step.modules for step in alike)
        modules.subtract(step.modules for step in steps)
        found += sorted(steps, key=lambda step: modules[step.modules])[: max(0, len(steps) - len(alike))]
    return found


def _difference(own: _Identified, step: Step, given: _Identified, wanted: Step) -> str:
    for name in sorted({*step.settings, *wanted.settings}):
        has, wants = step.settings.get(name), wanted.settings.get(name)
        if has != wants:
            return f"{name} is {_short(has)}, the checkpoint gives {_short(wants)}"
    pairs = zip(step.inputs, wanted.inputs, strict=False)
    places = [place for place, (has, wants) in enumerate(pairs) if own.constants.get(has) != given.constants.get(wants)]
    return f"operand {places[0] if places else '?'} is not the constant that the checkpoint gives"


def _constant_lines(own: _Identified, given: _Identified) -> Iterator[str]:
    more = own.unread - given.unread
    names = [name for name, identity in own.constants.items() if identity in more]
    if names:
        yield f"no operation reads {_listed(names)}"


def _wiring_lines(own: _Identified, given: _Identified) -> Iterator[str]:
    """Yield the first operation of each chain that reads other values; both graphs must have the same operations."""
    known = set(given.values.values())
    for step in own.graph.steps:
        reads = [own.values.get(name, "?") for name in step.inputs]
        if any(own.values[name] not in known for name in step.outputs) and all(one in known for one in reads):
            yield f"{_named(step)} reads other values than the checkpoint's graph"
    for name, value in own.graph.outputs.items():
        source, wanted = own.values.get(value), given.values.get(given.graph.outputs[name])
        if source != wanted and (source is None or source in known):
            yield f"output {name.split()[0]} of the graph is another value than the checkpoint gives"


def _named(step: Step) -> str:
    return f"{step.kind} of {step.modules[0]}" if step.modules and step.modules[0] else step.kind


def _listed(items: Iterable[str]) -> str:
    found: Sequence[str] = [_short(item) for item in items]
    more = len(found) - _MOST_NAMED
    return ("; ".join(found[:_MOST_NAMED]) or "nothing") + (f" and {more} more" if more > 0 else "")


def _short(text: str | None) -> str:
    return "absent" if text is None else " ".join(text.split())[:80]
