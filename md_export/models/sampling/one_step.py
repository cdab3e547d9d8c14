"""One-step sampler: x0 from a single call of the UNet (section 2 of arXiv 2311.16567)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from md_export.spec.sampler import OneStep
from md_export.spec.tensors import Array, Float32

if TYPE_CHECKING:
    from md_export.models.config import ModelConfig


def one_step(config: ModelConfig) -> OneStep:
    """Return the checkpoint's constants for one step."""
    a, b = config.schedule.one_step()
    return OneStep(config.schedule.last_timestep, a, b, config.vae.scaling_factor, config.schedule.prediction_type)


@dataclass(frozen=True)
class OneStepSampler:
    """Sampler that takes one step, without guidance."""

    constants: OneStep
    guidance: None = None

    @property
    def timesteps(self) -> tuple[float, ...]:
        """Timestep of the only UNet call."""
        return (self.constants.timestep,)

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

    def step(self, step: int, x: Float32, output: Float32) -> Float32:  # noqa: ARG002 (the protocol's)
        """Return x0, computed in float32: with ``epsilon`` this multiplies the output's error by 14.6."""
        return linear(self.constants.a, self.constants.b, x, output)


def linear(a: float, b: float, x: Float32, output: Float32) -> Float32:
    """Return a·x + b·output, computed in float32."""
    return (np.float32(a) * x + np.float32(b) * output).astype(np.float32)
