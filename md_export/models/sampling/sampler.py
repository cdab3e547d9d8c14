"""The protocol of samplers: how the UNet's outputs lead from noise to the decoder's input."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from md_export.models.sampling.ddim import DdimSampler, ddim_of
from md_export.models.sampling.euler import EulerSampler, euler_of
from md_export.models.sampling.one_step import OneStepSampler
from md_export.spec.sampler import Ddim, ManySteps, OneStep, SamplerPlan
from md_export.spec.tensors import Array, Float32

if TYPE_CHECKING:
    from md_export.models.config import ModelConfig

Constants = OneStep | ManySteps


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
    if isinstance(constants, OneStep):
        return OneStepSampler(constants)
    return DdimSampler(constants) if isinstance(constants, Ddim) else EulerSampler(constants)


def steps_of(config: ModelConfig, plan: SamplerPlan | None) -> ManySteps | None:
    """Return the checkpoint's constants for the steps that a recipe asks for; None for one step.

    Raises:
        ConfigError: its schedule has no such steps.
    """
    if plan is None:
        return None
    return ddim_of(config, plan) if plan.kind == "ddim" else euler_of(config, plan)
