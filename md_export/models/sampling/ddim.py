"""DDIM without added noise (arXiv 2010.02502, eta 0), with classifier-free guidance (arXiv 2207.12598)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from md_export.models.sampling.one_step import linear
from md_export.spec.sampler import Ddim, DdimStep, ManySteps, SamplerPlan
from md_export.spec.tensors import Array, Float32

if TYPE_CHECKING:
    from md_export.models.config import ModelConfig


def ddim_of(config: ModelConfig, plan: SamplerPlan) -> Ddim:
    """Return the checkpoint's constants for the planned number of steps.

    Raises:
        ConfigError: the checkpoint's schedule has no such steps.
    """
    steps = tuple(DdimStep(*step) for step in config.schedule.ddim(plan.steps))
    return Ddim(plan.guidance, steps, config.vae.scaling_factor, config.schedule.prediction_type)


@dataclass(frozen=True)
class DdimSampler:
    """Sampler that takes all DDIM steps of its constants."""

    constants: ManySteps

    @property
    def timesteps(self) -> tuple[float, ...]:
        """Timesteps of the UNet calls, the noisiest first."""
        return tuple(step.timestep for step in self.constants.steps)

    @property
    def guidance(self) -> float:
        """Guidance of the recipe."""
        return self.constants.guidance

    @property
    def scaling_factor(self) -> float:
        """Scaling factor of latents."""
        return self.constants.scaling_factor

    def start(self, noise: Array) -> Float32:
        """Return the noise unchanged, in float32."""
        return noise.astype(np.float32, copy=False)

    def taken(self, step: int, x: Float32) -> Float32:  # noqa: ARG002 (the protocol's)
        """Return x unchanged."""
        return x

    def step(self, step: int, x: Float32, output: Float32) -> Float32:
        """Return a·x + b·output with the step's constants."""
        one = self.constants.steps[step]
        return linear(one.a, one.b, x, output)
