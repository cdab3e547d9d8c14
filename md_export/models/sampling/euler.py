"""Euler's method in the space of noise levels (arXiv 2206.00364, algorithm 1 without churn), with guidance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from md_export.models.sampling.ddim import DdimSampler
from md_export.spec.sampler import Euler, EulerStep, SamplerPlan
from md_export.spec.tensors import Array, Float32

if TYPE_CHECKING:
    from md_export.models.config import ModelConfig


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


@dataclass(frozen=True)
class EulerSampler(DdimSampler):
    """Takes all steps; x is the latent plus noise of the present level, which the UNet takes at unit variance."""

    constants: Euler

    def start(self, noise: Array) -> Float32:
        """Noise of the first level."""
        return np.float32(self.constants.start) * noise.astype(np.float32)

    def taken(self, step: int, x: Float32) -> Float32:
        """x at unit variance."""
        return np.float32(self.constants.steps[step].scale) * x
