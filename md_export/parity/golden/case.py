"""One golden case: named tensors, and which of them are a component's inputs and outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load

from md_export.errors import GoldenError
from md_export.models.families import family_named
from md_export.models.graph import Component, Family
from md_export.models.values import BORDERS, LAST, MADE, MOST, NOISE, TIMESTEP, Kind, calls_in
from md_export.spec.names import BORDER, DEFAULT_FAMILY, FamilyName
from md_export.spec.tensors import Array, Arrays


@dataclass(frozen=True)
class GoldenCase:
    """One prompt and seed with all values computed from them.

    ``values`` has the keys of :mod:`md_export.models.values`.
    ``style``: name of the style that it was computed with. ``call``: the call to return inputs and outputs of, if a
    component was called more than once; ``label`` names it.
    """

    name: str
    prompt: str
    seed: int
    values: Arrays
    call: int | None = None
    title: str = ""
    family: FamilyName = DEFAULT_FAMILY
    style: str | None = None

    @property
    def graph(self) -> Family:
        """The family's components."""
        return family_named(self.family)

    @property
    def label(self) -> str:
        """The case and the call in words."""
        return self.title or (f"{self.name} in the style {self.style}" if self.style else self.name)

    @property
    def picture(self) -> Array:
        """The picture ``[H, W, 3]`` in [0, 1]."""
        return self.values[MADE.key]

    @property
    def latent_sides(self) -> tuple[int, ...]:
        """Height and width of a latent."""
        return self.values[NOISE.key].shape[2:]

    def calls(self, component: str) -> tuple[GoldenCase, ...]:
        """Return the case once for each stored call of the component; for many steps, only some calls are stored."""
        row = self.graph[component]
        (output, *_) = row.outputs
        numbers = calls_in(self.values, self._first(component, output.name, output.kind))
        if row.called == "once" or not numbers:
            return (self,)
        return tuple(dataclasses.replace(self, call=call, title=self._title(row, call)) for call in numbers)

    def _node(self, component: str) -> str:
        """Return the component that computes the output: the last chunk, if the component is cut."""
        is_cut = self.graph[component] is self.graph.whole
        return self.graph.denoised.node if is_cut else component

    def _first(self, component: str, name: str, kind: Kind) -> str:
        """Return the key of an output without the number of a call; for several outputs, the key of the first."""
        key = f"{self._node(component)}.{name}"
        if kind is BORDERS:
            return next((key_without_call(held) for held in sorted(self.values) if held.startswith(key)), key)
        return f"{key}0" if kind.many else key

    def _title(self, row: Component, call: int) -> str:
        if row.called == "per prompt":
            return self.name if call else f"{self.name} without a prompt"
        timestep = self.values.get(f"{TIMESTEP.key}.{call}", np.zeros(0)).tolist()
        return f"{self.name} at timestep {timestep[0]:g}" if timestep else f"{self.name} in call {call}"

    def inputs(self, component: str) -> Arrays:
        """Return the component's golden inputs under the names that its artifacts use.

        Raises:
            GoldenError: the case holds none.
        """
        try:
            return self.graph[component].read(self.values, self.call)
        except KeyError as error:
            raise self._lacks(component, error) from error

    def output(self, component: str, name: str) -> Array:
        """Return the golden value of an output, by the name that the component's artifacts give it.

        Raises:
            GoldenError: the case holds none.
            KeyError: the component has no such output.
        """
        row, node = self.graph[component], self._node(component)
        # A rewrite may have folded a sampler step into the component; then its output is that step's output.
        folded = node == self.graph.denoised.node and name == LAST.name
        if not folded and not any(_covers(output.name, output.kind, name) for output in row.outputs):
            raise KeyError(name)
        key = LAST.key if folded else f"{node}.{name}"
        found = self.values.get(key, self.values.get(f"{key}.{self.call}"))
        if found is None:
            raise self._lacks(component, KeyError(key))
        return found

    def _lacks(self, component: str, error: KeyError) -> GoldenError:
        flag = "--encoder " if component == self.graph.encoded.node else ""
        return GoldenError(
            f"the golden case {self.name} has no values of {component} (no {error.args[0]}); make golden cases of a "
            f"checkpoint that has it: md-export golden CHECKPOINT {flag}-o DIR"
        )


def _covers(beginning: str, kind: Kind, name: str) -> bool:
    number = name.removeprefix(beginning)
    if kind is BORDERS:
        return name.startswith(beginning)
    return name == beginning if not kind.many else number.isdecimal() and int(number) < MOST


@cache
def _kinds(name: FamilyName) -> Mapping[str, Kind]:
    """Return the kind of each value that a case of a family may hold, perhaps for several calls."""
    return dict(_each_kind(family_named(name)))


def _each_kind(family: Family) -> Iterator[tuple[str, Kind]]:
    for value in (*family.outside, MADE):
        yield value.key, value.kind
    for component in family.components:
        for output in component.outputs:
            for number in range(MOST) if output.kind.many and output.kind is not BORDERS else ("",):
                yield f"{component.name}.{output.name}{number}", output.kind


def values_from_bytes(content: bytes, path: Path, family: FamilyName = DEFAULT_FAMILY) -> Arrays:
    """Parse the content of a golden file; ``path`` is for error messages. Values may be NaN or Inf.

    Raises:
        GoldenError: the content is not a safetensors file, or does not have the tensors of a golden case.
    """
    wrong = f"{path} does not hold the tensors of a golden case"
    try:
        values = load(content)
    except (SafetensorError, TypeError, KeyError, ValueError) as error:
        raise GoldenError(f"{wrong}: {error}") from error
    for name, array in values.items():
        kind = _kinds(family).get(_key_of_kind(name))
        if kind is None:
            raise GoldenError(f"{wrong}: {name!r:.80} is none of them")
        rank = array.ndim if kind.rank is None else kind.rank
        if (array.ndim, str(array.dtype)) != (rank, kind.dtype) or not array.size:
            found = f"{name} is {array.dtype}{list(array.shape)}, not {kind.dtype} of rank {kind.rank}"
            raise GoldenError(f"{wrong}: {found}; make the golden cases again")
    if lacking := _lacking(GoldenCase("", "", 0, values, family=family)):
        raise GoldenError(f"{wrong}: {lacking} is missing")
    return values


def key_without_call(name: str) -> str:
    """Return the key of a value without the number of its call."""
    beginning, _, number = name.rpartition(".")
    return beginning if number.isdecimal() and "." in beginning else name


def _key_of_kind(name: str) -> str:
    """Return the key of a value's kind; all values that chunks pass to later chunks have one kind."""
    key, (node, _, output) = key_without_call(name), name.partition(".")
    return f"{node}.{BORDER}" if output.startswith(BORDER) else key


def _lacking(case: GoldenCase) -> str:
    """Return the key of a value that a case lacks: the picture, or an input or output on the way to it."""
    held = {name.partition(".")[0] for name in case.values}
    required = [component for component in case.graph.components if not component.optional or component.name in held]
    for component in required:
        for call in case.calls(component.name):
            try:
                component.read(call.values, call.call)
                for output in component.outputs:
                    key = call._first(component.name, output.name, output.kind)
                    call.output(component.name, key.removeprefix(f"{component.name}."))
            except (KeyError, GoldenError) as error:
                return str(error)
    return next((key for key in (NOISE.key, LAST.key, MADE.key) if key not in case.values), "")


def check_finite(values: Arrays, prompt: str) -> None:
    """Raise :class:`GoldenError` if a case contains NaN or Inf."""
    for name, array in values.items():
        if not np.isfinite(array).all():
            raise GoldenError(f"{name} of the golden case {prompt!r} holds NaN or Inf; the checkpoint itself is broken")
