"""Samplers, which turn noise and the UNet's outputs into the decoder's input, and their constants for a checkpoint.

One step: x0 from a single call of the UNet (section 2 of arXiv 2311.16567). Many steps, with classifier-free guidance
(arXiv 2207.12598): DDIM without added noise (arXiv 2010.02502, eta 0), or Euler's method in the space of noise levels
(arXiv 2206.00364, algorithm 1 without churn).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from md_export.spec.sampler import Ddim, DdimStep, Euler, EulerStep, ManySteps, OneStep, SamplerPlan
from md_export.spec.tensors import Array, Float32

if TYPE_CHECKING:
    from md_export.models.config import ModelConfig

Constants = OneStep | ManySteps


def one_step(config: ModelConfig) -> OneStep:
    """Return the checkpoint's constants for one step."""
    a, b = config.schedule.one_step()
    return OneStep(config.schedule.last_timestep, a, b, config.vae.scaling_factor, config.schedule.prediction_type)


def ddim_of(config: ModelConfig, plan: SamplerPlan) -> Ddim:
    """Return the checkpoint's constants for the planned number of steps.

    Raises:
        ConfigError: the checkpoint's schedule has no such steps.
    """
    steps = tuple(DdimStep(*step) for step in config.schedule.ddim(plan.steps))
    return Ddim(plan.guidance, steps, config.vae.scaling_factor, config.schedule.prediction_type)


def euler_of(config: ModelConfig, plan: SamplerPlan) -> Euler:
    """Return the checkpoint's constants for so many steps, as diffusers' EulerDiscreteScheduler has them.

    Raises:
        ConfigError: its schedule has no such steps.
    """
    schedule = config.schedule
    timesteps = schedule.timesteps(plan.steps, whole=False)
    levels = [*(schedule.noise_level(timestep) for timestep in timesteps), 0.0]
    pairs = zip(timesteps, levels, levels[1:], strict=False)
    steps = tuple(EulerStep(t, (level**2 + 1) ** -0.5, *schedule.euler_step(level, after)) for t, level, after in pairs)
    leading = schedule.timestep_spacing == "leading"
    start = (levels[0] ** 2 + 1) ** 0.5 if leading else levels[0]
    return Euler(plan.guidance, start, steps, config.vae.scaling_factor, schedule.prediction_type)


def linear(a: float, b: float, x: Float32, output: Float32) -> Float32:
    """Return a·x + b·output, computed in float32."""
    return (np.float32(a) * x + np.float32(b) * output).astype(np.float32)


@dataclass(frozen=True)
class Sampler:
    """A sampling method from noise to x0: the only step, or all of DDIM's. Steps are counted from 0.

    Attributes:
        constants: what an app needs to take the same steps.
    """

    constants: Constants

    @property
    def steps(self) -> tuple[OneStep | DdimStep | EulerStep, ...]:
        """Constants of each step, the noisiest first."""
        return (self.constants,) if isinstance(self.constants, OneStep) else self.constants.steps

    @property
    def timesteps(self) -> tuple[float, ...]:
        """Timesteps of the UNet calls."""
        return tuple(step.timestep for step in self.steps)

    @property
    def guidance(self) -> float | None:
        """Factor of classifier-free guidance; None if each call takes only the prompt."""
        return None if isinstance(self.constants, OneStep) else self.constants.guidance

    @property
    def scaling_factor(self) -> float:
        """Scaling factor of latents; they are divided by it before decoding."""
        return self.constants.scaling_factor

    def start(self, noise: Array) -> Float32:
        """Return x before the first step: the noise unchanged, in float32."""
        return noise.astype(np.float32, copy=False)

    def taken(self, step: int, x: Float32) -> Float32:  # noqa: ARG002 (Euler's method scales by step)
        """Return the UNet's input in a step: x unchanged."""
        return x

    def step(self, step: int, x: Float32, output: Float32) -> Float32:
        """Return x after a step, a·x + b·output, given the UNet's output.

        It is computed in float32: a single step with ``epsilon`` multiplies the output's error by 14.6.
        """
        one = self.steps[step]
        return linear(one.a, one.b, x, output)


@dataclass(frozen=True)
class EulerSampler(Sampler):
    """Takes all steps; x is the latent plus noise of the present level, which the UNet takes at unit variance."""

    constants: Euler

    def start(self, noise: Array) -> Float32:
        """Noise of the first level."""
        return np.float32(self.constants.start) * noise.astype(np.float32)

    def taken(self, step: int, x: Float32) -> Float32:
        """x at unit variance."""
        return np.float32(self.constants.steps[step].scale) * x


def sampler_for(constants: Constants) -> Sampler:
    """Return the sampler for the constants of a manifest or a golden index."""
    return EulerSampler(constants) if isinstance(constants, Euler) else Sampler(constants)


def steps_of(config: ModelConfig, plan: SamplerPlan | None) -> ManySteps | None:
    """Return the checkpoint's constants for the steps that a recipe asks for; None for one step.

    Raises:
        ConfigError: the checkpoint's schedule has no such steps.
    """
    if plan is None:
        return None
    return ddim_of(config, plan) if plan.kind == "ddim" else euler_of(config, plan)
