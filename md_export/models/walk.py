"""The one executor of the model graph: from what a request gives to the picture, whoever computes the components.

Text-to-image in one step and in many, with guidance or without, in-painting, image-to-image, adapters and ControlNets
differ in the given values alone. Several pictures are made side by side, so that each component is loaded once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

import numpy as np

from md_export.models.graph import Component, Family
from md_export.models.sampling.pictures import blend
from md_export.models.sampling.sampler import Place, Sampler
from md_export.models.values import (
    BLEND,
    FRESH,
    INPUT_IDS,
    LAST,
    MADE,
    MASK,
    NOISE,
    SAMPLE,
    SHOWN,
    TIMESTEP,
    calls_in,
)
from md_export.spec.tensors import Array, Arrays, Float32, Runner

# All values on the way to one picture, by their keys.
Tensors = dict[str, Array]
# A component's name and some sets of its inputs → its outputs for each; nothing where it could not compute them.
Run = Callable[[str, Sequence[Arrays]], Sequence[Arrays]]


@dataclass(frozen=True)
class Steps:
    """The part of a walk that is repeated: the components that each step calls, and the sampler.

    ``kept``: the steps whose values stay among those of the picture, by their numbers.
    """

    family: Family
    components: tuple[Component, ...]
    sampler: Sampler
    kept: Collection[int] = ()

    def take(self, run: Run, pictures: Sequence[Tensors]) -> None:
        """Take all steps, for all pictures at a time, and leave ``sampler.latent`` among the values of each.

        Where a component computes nothing, nothing is left.
        """
        places = [self._begin(values) for values in pictures]
        for number, step in enumerate(self.sampler.steps):
            for place, values in zip(places, pictures, strict=True):
                values[SAMPLE.key] = self.sampler.taken(number, place)
                values[TIMESTEP.key] = np.asarray([step.timestep], dtype=np.float32)
            for component in self.components:
                call(component, run, pictures)
            if any(self._folded not in values and self.family.denoised.key not in values for values in pictures):
                return
            places = [self._after(number, *both) for both in zip(places, pictures, strict=True)]
            for values in pictures if number in self.kept else ():
                values.update({f"{key}.{number}": values[key] for key in self._of_the_step(values)})
        for place, values in zip(places, pictures, strict=True):
            self._end(place.x, values)

    @property
    def _folded(self) -> str:
        """Key of the latent where a rewrite has folded the only step into the last component."""
        return f"{self.family.denoised.node}.{LAST.name}"

    def _begin(self, values: Tensors) -> Place:
        encoded = values.get(self.family.encoded.key)
        if MASK.key in values and encoded is not None:
            values[SHOWN.key] = encoded.astype(np.float32) * np.float32(self.sampler.scaling_factor)
        return self.sampler.start(values[NOISE.key])

    def _after(self, number: int, place: Place, values: Arrays) -> Place:
        if self._folded in values:
            return place
        output = values[self.family.denoised.key].astype(np.float32)
        if self.sampler.guidance is not None:
            without, with_prompt = output[:1], output[1:]
            output = without + np.float32(self.sampler.guidance) * (with_prompt - without)
        return self.sampler.step(number, place, output, values.get(FRESH.key))

    def _end(self, x: Float32, values: Tensors) -> None:
        """Leave the latent. Values of a single step stay, too; those of one among many have keys of their own."""
        latent = (x / np.float32(self.sampler.scaling_factor)).astype(np.float32)
        values[LAST.key] = values.pop(self._folded, latent)
        for key in self._of_the_step(values) if self.sampler.takes_many else [SAMPLE.key]:
            del values[key]

    def _of_the_step(self, values: Arrays) -> list[str]:
        """Keys of the values of the present step."""
        names = tuple(f"{component.name}." for component in self.components)
        own = [key for key in values if key.startswith(names) and key.count(".") == 1]
        return [SAMPLE.key, TIMESTEP.key, *own]


class Crew(Protocol):
    """Whoever computes the components: torch, artifacts in their runtimes, or values that were recorded."""

    def run(self, component: str, batches: Sequence[Arrays]) -> Sequence[Arrays]:
        """Compute a component on some sets of inputs; no sets where what feeds it could not be computed."""

    def take(self, steps: Steps, pictures: Sequence[Tensors]) -> None:
        """Take steps as :meth:`Steps.take` does."""


@dataclass(frozen=True)
class Runners:
    """A crew of runners that are all at hand."""

    runners: Mapping[str, Runner]

    def run(self, component: str, batches: Sequence[Arrays]) -> Sequence[Arrays]:
        """One call after the other."""
        return [self.runners[component].run(batch) for batch in batches]

    def take(self, steps: Steps, pictures: Sequence[Tensors]) -> None:
        """All steps, here."""
        steps.take(self.run, pictures)


def walk(
    family: Family,
    components: Sequence[Component],
    crew: Crew,
    pictures: Sequence[Arrays],
    sampler: Sampler,
    kept: Collection[int] = (),
) -> list[Tensors]:
    """Compute all values on the way to some pictures.

    Args:
        components: rows of the family that are there, in its order; one whose inputs are not given is not called.
        crew: whoever computes them.
        pictures: what is given for each picture, and values that need not be computed.
        kept: of many steps those whose values are returned, too.

    Returns:
        For each picture its values; those that its crew could not compute are missing.
    """
    walked = [dict(values) for values in pictures]
    for stepped, group in groupby(components, lambda component: component.called == "per step"):
        if stepped:
            crew.take(Steps(family, tuple(group), sampler, kept), walked)
            for values in walked:
                # The latents of a given picture take the place of those that are not painted anew.
                if BLEND.key in values and LAST.key in values:
                    values[LAST.key] = blend(values[LAST.key], values[BLEND.key], values[family.encoded.key])
            continue
        for component in group:
            call(component, crew.run, walked)
    for values in walked:
        if family.image.key in values:
            values[MADE.key] = picture_from(values[family.image.key])
    return walked


def call(component: Component, run: Run, pictures: Sequence[Tensors]) -> None:
    """Call a component for some pictures, and put what it gives among the values of each."""
    numbers = [calls_in(values, INPUT_IDS.key) if component.called == "per prompt" else () for values in pictures]
    calls = [(values, number) for values, of in zip(pictures, numbers, strict=True) for number in of or (None,)]
    try:
        batches = [component.read(*each) for each in calls]
    except KeyError:
        batches = []
    for (values, number), outputs in zip(calls, run(component.name, batches), strict=False):
        ending = "" if number is None else f".{number}"
        values.update({f"{component.name}.{name}{ending}": value for name, value in outputs.items()})


def picture_from(image: Array) -> Float32:
    """Decoder output ``[1, 3, H, W]`` in [-1, 1] → ``[H, W, 3]`` in [0, 1]. NaN stays NaN."""
    picture = np.clip(image.astype(np.float32)[0].transpose(1, 2, 0) / 2 + 0.5, 0.0, 1.0)
    return np.ascontiguousarray(picture)
