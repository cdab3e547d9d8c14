"""The protocol of samplers: how the UNet's outputs lead from noise to the decoder's input."""

from __future__ import annotations

from typing import Protocol

from md_export.models.sampling.ddim import DdimSampler
from md_export.models.sampling.one_step import OneStepSampler
from md_export.spec.sampler import Ddim, OneStep
from md_export.spec.tensors import Array, Float32

Constants = OneStep | Ddim


class Sampler(Protocol):
    """One way from noise to x0; steps are counted from 0."""

    @property
    def constants(self) -> Constants:
        """What an app needs to take the same steps."""

    @property
    def timesteps(self) -> tuple[float, ...]:
        """At which the UNet is called."""

    @property
    def guidance(self) -> float | None:
        """Factor of classifier-free guidance; None where each call takes the prompt alone."""

    @property
    def scaling_factor(self) -> float:
        """Of latents, which the decoder takes without it."""

    def start(self, noise: Array) -> Float32:
        """Return x before the first step."""

    def taken(self, step: int, x: Float32) -> Float32:
        """Return what the UNet takes in a step."""

    def step(self, step: int, x: Float32, output: Float32) -> Float32:
        """Return x after a step, given the UNet's output."""


def sampler_for(constants: Constants) -> Sampler:
    """Return the sampler for the constants of a manifest or a golden index."""
    return OneStepSampler(constants) if isinstance(constants, OneStep) else DdimSampler(constants)
