"""Execute the model graph from the values of a request to the picture, with any backend for the components.

Text-to-image in one or many steps, guidance, in-painting, image-to-image, adapters and ControlNets differ only in the
given values. Several pictures are computed together, so that each component is loaded once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

import numpy as np

from md_export.models.graph import Component, Family
from md_export.models.sampling.pictures import blend
from md_export.models.sampling.sampler import Sampler, SamplerState
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

# All values of one picture, by their keys.
Tensors = dict[str, Array]
# Function of a component's name and several sets of inputs; returns the outputs for each, empty if it failed.
Run = Callable[[str, Sequence[Arrays]], Sequence[Arrays]]


@dataclass(frozen=True)
class Steps:
    """The repeated part of a walk: the components that each step calls, and the sampler.

    ``kept``: numbers of the steps with values that stay among those of the picture.
    """

    family: Family
    components: tuple[Component, ...]
    sampler: Sampler
    kept: Collection[int] = ()

    def take(self, run: Run, pictures: Sequence[Tensors]) -> None:
        """Take all steps for all pictures together, and add ``sampler.latent`` to the values of each.

        If a component fails, nothing is added.
        """
        states = [self._begin(values) for values in pictures]
        for number, step in enumerate(self.sampler.steps):
            for state, values in zip(states, pictures, strict=True):
                values[SAMPLE.key] = self.sampler.unet_input(number, state)
                values[TIMESTEP.key] = np.asarray([step.timestep], dtype=np.float32)
            for component in self.components:
                call(component, run, pictures)
            if any(self._folded not in values and self.family.denoised.key not in values for values in pictures):
                return
            states = [self._after(number, *both) for both in zip(states, pictures, strict=True)]
            for values in pictures if number in self.kept else ():
                values.update({f"{key}.{number}": values[key] for key in self._of_the_step(values)})
        for state, values in zip(states, pictures, strict=True):
            self._end(state.x, values)

    @property
    def _folded(self) -> str:
        """Key of the latent if a rewrite has folded the single step into the last component."""
        return f"{self.family.denoised.node}.{LAST.name}"

    def _begin(self, values: Tensors) -> SamplerState:
        encoded = values.get(self.family.encoded.key)
        if MASK.key in values and encoded is not None:
            values[SHOWN.key] = encoded.astype(np.float32) * np.float32(self.sampler.scaling_factor)
        return self.sampler.start(values[NOISE.key])

    def _after(self, number: int, state: SamplerState, values: Arrays) -> SamplerState:
        if self._folded in values:
            return state
        output = values[self.family.denoised.key].astype(np.float32)
        if self.sampler.guidance is not None:
            without, with_prompt = output[:1], output[1:]
            output = without + np.float32(self.sampler.guidance) * (with_prompt - without)
        return self.sampler.step(number, state, output, values.get(FRESH.key))

    def _end(self, x: Float32, values: Tensors) -> None:
        """Add the latent. Values of a single step also stay; those of many steps are stored with the step's number."""
        latent = (x / np.float32(self.sampler.scaling_factor)).astype(np.float32)
        values[LAST.key] = values.pop(self._folded, latent)
        for key in self._of_the_step(values) if self.sampler.takes_many else [SAMPLE.key]:
            del values[key]

    def _of_the_step(self, values: Arrays) -> list[str]:
        """Return the keys of the values of the current step."""
        names = tuple(f"{component.name}." for component in self.components)
        own = [key for key in values if key.startswith(names) and key.count(".") == 1]
        return [SAMPLE.key, TIMESTEP.key, *own]


class Backend(Protocol):
    """Computes the components: with torch, with artifacts in their runtimes, or from recorded values."""

    def run(self, component: str, batches: Sequence[Arrays]) -> Sequence[Arrays]:
        """Return a component's outputs for each set of inputs; ``batches`` is empty if inputs could not be computed."""

    def take(self, steps: Steps, pictures: Sequence[Tensors]) -> None:
        """Take the steps, as :meth:`Steps.take`."""


@dataclass(frozen=True)
class Runners:
    """Backend of runners that are all loaded."""

    runners: Mapping[str, Runner]

    def run(self, component: str, batches: Sequence[Arrays]) -> Sequence[Arrays]:
        """Return the outputs of one call after the other."""
        return [self.runners[component].run(batch) for batch in batches]

    def take(self, steps: Steps, pictures: Sequence[Tensors]) -> None:
        """Take all steps in this process."""
        steps.take(self.run, pictures)


def walk(
    family: Family,
    components: Sequence[Component],
    backend: Backend,
    pictures: Sequence[Arrays],
    sampler: Sampler,
    kept: Collection[int] = (),
) -> list[Tensors]:
    """Compute all values of several pictures.

    Args:
        components: rows of the available components, in order; one without all inputs is not called.
        backend: computes the components.
        pictures: given values of each picture, and known values that are not computed again.
        kept: numbers of the steps with values to return.

    Returns:
        The values of each picture; those that the backend could not compute are missing.
    """
    walked = [dict(values) for values in pictures]
    for stepped, group in groupby(components, lambda component: component.called == "per step"):
        if stepped:
            backend.take(Steps(family, tuple(group), sampler, kept), walked)
            for values in walked:
                # Restore the latents of the given picture outside the mask.
                if BLEND.key in values and LAST.key in values:
                    values[LAST.key] = blend(values[LAST.key], values[BLEND.key], values[family.encoded.key])
            continue
        for component in group:
            call(component, backend.run, walked)
    for values in walked:
        if family.image.key in values:
            values[MADE.key] = picture_from(values[family.image.key])
    return walked


def call(component: Component, run: Run, pictures: Sequence[Tensors]) -> None:
    """Call a component for several pictures, and add its outputs to the values of each."""
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
    """Return the decoder's output ``[1, 3, H, W]`` in [-1, 1] as ``[H, W, 3]`` in [0, 1]. NaN stays NaN."""
    picture = np.clip(image.astype(np.float32)[0].transpose(1, 2, 0) / 2 + 0.5, 0.0, 1.0)
    return np.ascontiguousarray(picture)
