"""The model graph: components as rows, and typed references from each input to the value that feeds it.

Nothing here loads torch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from md_export.models.values import BORDERS, Called, Kind, Value, is_guided
from md_export.spec.names import BORDER, ORDER, FamilyName, chunk_names, whole_of
from md_export.spec.tensors import Array, Arrays, TensorSpec

if TYPE_CHECKING:
    from torch import nn

    from md_export.models.config import ControlConfig, DenoiserConfig, ModelConfig


@dataclass(frozen=True)
class Port:
    """One input of a component, or one for each of the values of its source.

    Attributes:
        name: the input's; the beginning of the inputs' where the source has many.
        source: the value that it takes.
        kind: of the input, where ``beside`` makes it another than the source's.
        beside: values that are joined to it along ``axis``, in groups; a group may be left out where its first value is
            given by a request or the sampler.
        batched: guidance doubles it, to the empty prompt's and the prompt's.
        when: the given value without which the port may stay empty.
        times: a given value with a factor for each row, where there is one.
    """

    name: str
    source: Value
    kind: Kind | None = None
    beside: tuple[tuple[Value, ...], ...] = ()
    batched: bool = True
    when: Value | None = None
    axis: int = 1
    times: Value | None = None

    def specs(self, config: ModelConfig) -> tuple[TensorSpec, ...]:
        """Specs of the inputs, for one prompt."""
        return (self.kind or self.source.kind).specs(self.name, config)

    def covers(self, name: str) -> bool:
        """Whether an input of that name is the port's."""
        return name.startswith(self.name) if self.source.kind.many else name == self.name

    def read(self, values: Arrays, called: Called, call: int | None) -> dict[str, Array]:
        """Find the inputs by name; KeyError for one that should be there."""
        found = self.source.read(values, called, call)
        if not found and (self.when is None or self.when.key in values):
            raise KeyError(self.source.key)
        more = [one for group in self.beside for one in self._group(group, values, called, call)]
        factors = None if self.times is None else values.get(self.times.key)
        joined = {number: _joined(value, more, self.axis) for number, value in found.items()}
        return {f"{self.name}{number}": _times(value, factors) for number, value in joined.items()}

    @staticmethod
    def _group(group: tuple[Value, ...], values: Arrays, called: Called, call: int | None) -> list[Array]:
        found = [value.read(values, called, call) for value in group]
        if not found[0] and group[0].node in ("given", "sampler"):
            return []
        if not all(found):
            raise KeyError(next(value.key for value, one in zip(group, found, strict=True) if not one))
        return [one for each in found for one in each.values()]


def _joined(value: Array, more: list[Array], axis: int) -> Array:
    if not more:
        return value
    rows = (np.repeat(one, len(value) // len(one), axis=0).astype(value.dtype) for one in more)
    return np.concatenate([value, *rows], axis=axis)


def _times(value: Array, factors: Array | None) -> Array:
    """Rows ``[B, …]``, each times its factor ``[B]``."""
    return value if factors is None else value * factors.reshape(-1, *[1] * (value.ndim - 1)).astype(value.dtype)


@dataclass(frozen=True)
class Output:
    """One output of a component; where its kind is of many, the beginning of their names."""

    name: str
    kind: Kind


@dataclass(frozen=True)
class Component:
    """One exported part of a model.

    Attributes:
        folder: of its config and weights in a checkpoint, which several components may share.
        build: torch module for a checkpoint's configs.
        key_prefixes: of the names of its weights in the folder's files.
        unused: whether a weight in these files, by its name, is one that it does not have.
        optional: checkpoints may do without it.
        needed: whether a picture of such a checkpoint needs it.
    """

    name: str
    folder: str
    build: Callable[[ModelConfig], nn.Module]
    inputs: tuple[Port, ...]
    outputs: tuple[Output, ...]
    key_prefixes: tuple[str, ...] = ("",)
    unused: Callable[[ModelConfig, str], bool] = lambda _, _name: False
    called: Called = "once"
    optional: bool = False
    needed: Callable[[ModelConfig], bool] = lambda _: True

    def __getitem__(self, output: str) -> Value:
        """Return the reference to an output; KeyError for one that it does not give."""
        kinds = {one.name: one.kind for one in self.outputs}
        return Value(self.name, output, kinds[output], self.called)

    @property
    def is_first(self) -> bool:
        """Whether no other component feeds it."""
        return all(port.source.node == "given" for port in self.inputs)

    def is_asked(self, values: Arrays) -> bool:
        """Whether all is given that it takes of a request."""
        given = [port.source for port in self.inputs if port.source.node == "given"]
        return all(source.read(values, "once", None) for source in given)

    def input_specs(self, config: ModelConfig) -> tuple[TensorSpec, ...]:
        """Inputs for one prompt, in the order in which the module takes them."""
        return tuple(spec for port in self.inputs for spec in port.specs(config))

    def output_specs(self, config: ModelConfig) -> tuple[TensorSpec, ...]:
        """Outputs for one prompt, in the order in which the module gives them."""
        return tuple(spec for output in self.outputs for spec in output.kind.specs(output.name, config))

    def may_lack(self, name: str) -> bool:
        """Whether an input may be left out, which then adds nothing."""
        return any(port.when is not None and port.covers(name) for port in self.inputs)

    def neutral(self, specs: Sequence[TensorSpec]) -> dict[str, Array]:
        """Return values for the inputs of an artifact that may be left out, which then add nothing."""
        pairs = [(port, spec) for port in self.inputs if port.when for spec in specs if port.covers(spec.name)]
        return {f"{port.source.key}{spec.name.removeprefix(port.name)}": spec.zeros()[:1] for port, spec in pairs}

    def is_shared(self, name: str) -> bool:
        """Whether guidance leaves an input or output as it is, one for both prompts."""
        return any(not port.batched and port.covers(name) for port in self.inputs)

    def chunks(self, count: int) -> tuple[Component, ...]:
        """Return rows of its chunks: each may take all that it takes, and what the chunks before give."""
        rows: list[Component] = []
        for name in chunk_names(self.name, count):
            earlier = (Port(BORDER, row[BORDER], batched=False) for row in rows)
            outputs = self.outputs if len(rows) == count - 1 else (Output(BORDER, BORDERS),)
            rows.append(replace(self, name=name, inputs=(*self.inputs, *earlier), outputs=outputs))
        return tuple(rows)

    def read(self, values: Arrays, call: int | None = None) -> dict[str, Array]:
        """Inputs of one call, given the values on the way to a picture; KeyError for one that should be there."""
        batch = 2 if self.called == "per step" and is_guided(values) else 1
        found = {}
        for port in self.inputs:
            for name, value in port.read(values, self.called, call).items():
                short = port.batched and len(value) < batch
                found[name] = np.repeat(value, batch, axis=0) if short else value
        return found


@dataclass(frozen=True)
class Form:
    """The files that a family's checkpoints are recognized and written by.

    Attributes:
        name: of the family; also of the architecture that stands for it.
        title: as people call its models.
        pipeline: diffusers' class of the whole.
        classes: library and class of what each folder holds.
        earlier_class: the denoiser's, as older versions of its library saved it.
        denoiser: of the fields of its ``config.json``.
        marks: values of these fields that tell it from another family with the same class.
        controlnet: of the fields of ``config.json``; None where ControlNets are not read.
        libraries: distributions beside torch and transformers that compute it.
        vae: fields of ``vae/config.json`` that its checkpoints may leave out.
        one_step: its models are trained to make a picture in one step.
        zeros_for_empty: guidance leads away from zeros instead of the empty prompt, unless model_index.json denies it.
    """

    name: FamilyName
    title: str
    pipeline: str
    classes: Mapping[str, tuple[str, str]]
    denoiser: type[DenoiserConfig]
    earlier_class: str | None = None
    marks: Mapping[str, object] = field(default_factory=dict)
    controlnet: type[ControlConfig] | None = None
    libraries: tuple[str, ...] = ()
    vae: Mapping[str, object] = field(default_factory=dict)
    one_step: bool = False
    zeros_for_empty: bool = False


@dataclass(frozen=True)
class Family:
    """Models of one wiring: their components in the order in which they run.

    Attributes:
        outside: values that requests and the sampler feed into the components.
        denoised: the output that each step of the sampler takes.
        encoded: the output that a given picture's latents are.
        image: the output that is the picture.
        tokens: token ids of a prompt, by the folder of the tokenizer that makes them.
        whole: the denoiser, where ``components`` has its chunks.
        rows: the components by name, and the whole.
    """

    form: Form
    components: tuple[Component, ...]
    outside: tuple[Value, ...]
    denoised: Value
    encoded: Value
    image: Value
    tokens: Mapping[str, Value]
    whole: Component | None = None
    rows: dict[str, Component] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse a graph in which an input has no producer. ValueError names both."""
        known = {value.key for value in self.outside}
        for component in self.components:
            for port in component.inputs:
                self._check(component, port, known)
            known |= {f"{component.name}.{output.name}" for output in component.outputs}
        if not {self.denoised.key, self.encoded.key, self.image.key} <= known:
            raise ValueError(f"{self.form.name}: denoised, encoded and image must be outputs of its components")
        names = [*dict.fromkeys(whole_of(component.name) for component in self.components)]
        if names != [name for name in ORDER if name in names]:
            raise ValueError(f"{self.form.name}: components must be declared in the order {', '.join(ORDER)}")
        rows = (*self.components, *([self.whole] if self.whole else []))
        object.__setattr__(self, "rows", {component.name: component for component in rows})

    def _check(self, component: Component, port: Port, known: set[str]) -> None:
        more = (*chain.from_iterable(port.beside), *filter(None, (port.when, port.times)))
        for value in (port.source, *more):
            for source in value.alternatives():
                if source.key not in known:
                    raise ValueError(
                        f"{self.form.name}: {component.name}.{port.name} takes {source.key}, which nothing before it "
                        f"gives; known are {', '.join(sorted(known))}"
                    )

    def __getitem__(self, name: str) -> Component:
        """Return a component's row; KeyError for a name that the family does not have."""
        return self.rows[name]

    def cut(self, count: int) -> Family:
        """Return the same family with its denoiser in so many chunks."""
        whole = self[self.denoised.node]
        chunks = whole.chunks(count)
        components = ((chunks if row is whole else (row,)) for row in self.components)
        return replace(
            self,
            form=replace(self.form, name=f"{self.form.name}:{count}"),
            components=tuple(chain.from_iterable(components)),
            denoised=chunks[-1][self.denoised.name],
            whole=whole,
        )

    @property
    def required(self) -> tuple[Component, ...]:
        """Rows of the components that every checkpoint has."""
        return tuple(component for component in self.components if not component.optional)

    def of(self, names: Collection[str]) -> tuple[Component, ...]:
        """Rows of all parts of a checkpoint or export that has the components ``names``, in order.

        A component in the same folder as one of these is there, too.
        """
        folders = {self.rows[name].folder for name in names}
        return tuple(component for component in self.components if component.folder in folders)
