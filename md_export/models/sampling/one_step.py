"""One step: x0 from a single call of the UNet (section 2 of arXiv 2311.16567)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from md_export.spec.sampler import OneStep
from md_export.spec.tensors import Array, Float32

if TYPE_CHECKING:
    from md_export.models.config import ModelConfig


def one_step(config: ModelConfig) -> OneStep:
    """Return the checkpoint's constants."""
    a, b = config.schedule.one_step()
    return OneStep(config.schedule.last_timestep, a, b, config.vae.scaling_factor, config.schedule.prediction_type)


@dataclass(frozen=True)
class OneStepSampler:
    """Takes the one step, without guidance."""

    constants: OneStep
    guidance: None = None

    @property
    def timesteps(self) -> tuple[float, ...]:
        """The only one."""
        return (self.constants.timestep,)

    @property
    def scaling_factor(self) -> float:
        """Of latents."""
        return self.constants.scaling_factor

    def start(self, noise: Array) -> Float32:
        """The noise as it is."""
        return noise.astype(np.float32, copy=False)

    def taken(self, step: int, x: Float32) -> Float32:  # noqa: ARG002 (the protocol's)
        """x as it is."""
        return x

    def step(self, step: int, x: Float32, output: Float32) -> Float32:  # noqa: ARG002 (the protocol's)
        """x0, in float32: with ``epsilon`` the output's error is multiplied by 14.6 here."""
        return linear(self.constants.a, self.constants.b, x, output)


def linear(a: float, b: float, x: Float32, output: Float32) -> Float32:
    """a·x + b·output in float32."""
    return (np.float32(a) * x + np.float32(b) * output).astype(np.float32)
