"""Model graph: rows of components, with a typed reference from each input to the value that feeds it.

This module does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from md_export.models.values import BORDERS, Called, Kind, Value, is_guided
from md_export.spec.names import BORDER, ORDER, FamilyName, chunk_names, whole_of
from md_export.spec.style import value_key
from md_export.spec.tensors import Array, Arrays, TensorSpec

if TYPE_CHECKING:
    from torch import nn

    from md_export.models.config import ControlConfig, DenoiserConfig, ModelConfig


@dataclass(frozen=True)
class Port:
    """One input of a component, or several if its source has several values.

    Attributes:
        name: name of the input, or prefix of the names of several.
        source: value that feeds the input.
        kind: kind of the input, if ``beside`` makes it differ from the source's.
        beside: groups of values that are concatenated to it along ``axis``; a group is optional if its first value
            comes from a request or the sampler.
        batched: with guidance its batch has two samples, for the empty prompt and for the prompt.
        when: without this value of the request, the input is optional.
        times: value with a factor for each row, which is optional.
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
        """Return the specs of the inputs for one prompt."""
        return (self.kind or self.source.kind).specs(self.name, config)

    def covers(self, name: str) -> bool:
        """Return whether an input with this name belongs to the port."""
        return name.startswith(self.name) if self.source.kind.many else name == self.name

    def read(self, values: Arrays, called: Called, call: int | None) -> dict[str, Array]:
        """Return the inputs by name; raise KeyError if a required one is missing."""
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
    """Return rows ``[B, …]``, each multiplied by its factor ``[B]``."""
    return value if factors is None else value * factors.reshape(-1, *[1] * (value.ndim - 1)).astype(value.dtype)


@dataclass(frozen=True)
class Output:
    """One output of a component; for a kind with many values, ``name`` is the prefix of their names."""

    name: str
    kind: Kind


@dataclass(frozen=True)
class Component:
    """One exported part of a model.

    Attributes:
        folder: folder of its config and weights in a checkpoint; several components may share it.
        build: returns its torch module for a checkpoint's configs.
        key_prefixes: prefixes of its weights' names in the folder's files.
        unused: whether the weight with this name in these files is not used.
        optional: a checkpoint may lack it.
        needed: whether pictures of a checkpoint with these configs need it.
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
        """Return the reference to an output; raise KeyError for an unknown one."""
        kinds = {one.name: one.kind for one in self.outputs}
        return Value(self.name, output, kinds[output], self.called)

    @property
    def is_first(self) -> bool:
        """Whether none of its inputs comes from another component."""
        return all(port.source.node == "given" for port in self.inputs)

    def is_asked(self, values: Arrays) -> bool:
        """Return whether ``values`` has all inputs that a request must provide."""
        given = [port.source for port in self.inputs if port.source.node == "given"]
        return all(source.read(values, "once", None) for source in given)

    def input_specs(self, config: ModelConfig) -> tuple[TensorSpec, ...]:
        """Return the specs of the inputs for one prompt, in the order of the module's parameters."""
        return tuple(spec for port in self.inputs for spec in port.specs(config))

    def output_specs(self, config: ModelConfig) -> tuple[TensorSpec, ...]:
        """Return the specs of the outputs for one prompt, in the order of the module's results."""
        return tuple(spec for output in self.outputs for spec in output.kind.specs(output.name, config))

    def may_lack(self, name: str) -> bool:
        """Return whether an input is optional; without it nothing is added."""
        return any(port.when is not None and port.covers(name) for port in self.inputs)

    def neutral(self, specs: Sequence[TensorSpec]) -> dict[str, Array]:
        """Return values without effect for the optional inputs of an artifact."""
        pairs = [(port, spec) for port in self.inputs if port.when for spec in specs if port.covers(spec.name)]
        return {f"{port.source.key}{spec.name.removeprefix(port.name)}": spec.zeros()[:1] for port, spec in pairs}

    def is_shared(self, name: str) -> bool:
        """Return whether an input or output is shared by both prompts of guidance."""
        return any(not port.batched and port.covers(name) for port in self.inputs)

    def chunks(self, count: int) -> tuple[Component, ...]:
        """Return the rows of its chunks; each may have all inputs of the whole, and the outputs of earlier chunks."""
        rows: list[Component] = []
        for name in chunk_names(self.name, count):
            earlier = (Port(BORDER, row[BORDER], batched=False) for row in rows)
            outputs = self.outputs if len(rows) == count - 1 else (Output(BORDER, BORDERS),)
            rows.append(replace(self, name=name, inputs=(*self.inputs, *earlier), outputs=outputs))
        return tuple(rows)

    def read(self, values: Arrays, call: int | None = None) -> dict[str, Array]:
        """Return the inputs of one call from a picture's values; raise KeyError if a required one is missing."""
        batch = 2 if self.called == "per step" and is_guided(values) else 1
        found = {}
        for port in self.inputs:
            for name, value in port.read(values, self.called, call).items():
                short = port.batched and len(value) < batch
                found[name] = np.repeat(value, batch, axis=0) if short else value
        style = value_key(self.name, "")
        return found | {key.removeprefix(style): value for key, value in values.items() if key.startswith(style)}


@dataclass(frozen=True)
class Form:
    """Properties by which a family's checkpoints are recognized and written.

    Attributes:
        name: name of the family and of its default architecture.
        title: name for users.
        pipeline: diffusers' pipeline class.
        classes: library and class of the model in each folder.
        earlier_class: class of the denoiser in files of older diffusers versions.
        denoiser: config class of the denoiser.
        marks: values of config fields that distinguish it from another family with the same class.
        controlnet: of the fields of ``config.json``; None where ControlNets are not read.
        libraries: distributions that it needs besides torch and transformers.
        vae: defaults of ``vae/config.json`` for fields that its checkpoints may leave out.
        one_step: its models are trained to make a picture in one step.
        zeros_for_empty: unconditional text embeddings are zeros, unless model_index.json says otherwise.
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
    """Models with the same graph; ``components`` are in the order in which they run.

    Attributes:
        outside: values from requests and the sampler.
        denoised: output of the denoiser, which each step of the sampler reads.
        encoded: output of the VAE encoder: the latents of a given picture.
        image: output that is the picture.
        tokens: token ids of a prompt, by folder of the tokenizer.
        whole: the whole denoiser, if ``components`` has its chunks.
        rows: components by name, including ``whole``.
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
        """Raise ValueError, which names both, if an input has no producer."""
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
                        f"{self.form.name}: {component.name}.{port.name} needs {source.key}, which no component before "
                        f"it returns; known are {', '.join(sorted(known))}"
                    )

    def __getitem__(self, name: str) -> Component:
        """Return a component's row; raise KeyError for an unknown name."""
        return self.rows[name]

    def cut(self, count: int) -> Family:
        """Return the family with its denoiser cut into ``count`` chunks."""
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

    def needed(self, stored: bool) -> tuple[Component, ...]:
        """Rows of the components that a picture needs; with ``stored`` text embeddings, without the text encoders."""
        return tuple(row for row in self.required if not stored or row.called != "per prompt")

    @property
    def required(self) -> tuple[Component, ...]:
        """Rows of the components that are not optional."""
        return tuple(component for component in self.components if not component.optional)

    def of(self, names: Collection[str]) -> tuple[Component, ...]:
        """Return the rows of all parts of a checkpoint or export with the components ``names``, in order.

        This includes components in the same folder as one of these.
        """
        folders = {self.rows[name].folder for name in names}
        return tuple(component for component in self.components if component.folder in folders)
