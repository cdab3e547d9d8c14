"""Protocol of samplers, which turn noise and the UNet's outputs into the decoder's input."""

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
    """A sampling method from noise to x0; steps are counted from 0."""

    @property
    def constants(self) -> Constants:
        """Constants that an app needs to take the same steps."""

    @property
    def timesteps(self) -> tuple[float, ...]:
        """Timesteps of the UNet calls."""

    @property
    def guidance(self) -> float | None:
        """Factor of classifier-free guidance; None if each call takes only the prompt."""

    @property
    def scaling_factor(self) -> float:
        """Scaling factor of latents; they are divided by it before decoding."""

    def start(self, noise: Array) -> Float32:
        """Return x before the first step."""

    def taken(self, step: int, x: Float32) -> Float32:
        """Return the UNet's input in a step."""

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
        ConfigError: the checkpoint's schedule has no such steps.
    """
    if plan is None:
        return None
    return ddim_of(config, plan) if plan.kind == "ddim" else euler_of(config, plan)
