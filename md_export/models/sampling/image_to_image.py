"""Image-to-image (SDEdit, arXiv 2108.01073): a picture's latents under noise, in place of noise alone.

The ``strength`` says how far back the schedule is entered. With 1 nothing of the picture is left: the start is noise
alone, as for a picture of nothing but a prompt.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from md_export.errors import UsageError
from md_export.models.sampling.schedule import ScheduleConfig
from md_export.spec.sampler import Euler, ManySteps, OneStep
from md_export.spec.tensors import Array, Float32


@dataclass(frozen=True)
class Start:
    """A picture ``[1, 3, H, W]`` in [-1, 1] to start from, and the strength in (0, 1]: how much of it may change."""

    image: Float32
    strength: float

    def __post_init__(self) -> None:
        """Refuse what is no share. UsageError says what is."""
        if not 0 < self.strength <= 1:
            raise UsageError(
                f"--strength {self.strength:g} is not above 0 and at most 1: near 0 keeps the picture, 1 keeps nothing"
            )


@dataclass(frozen=True)
class Entry:
    """Where a schedule is entered.

    Attributes:
        alpha: ᾱ there: the share of the picture's latents in the start's variance; 0 where it is noise alone.
        one_step, steps: the constants of what is left.
    """

    alpha: float
    one_step: OneStep
    steps: ManySteps | None

    def noised(self, latent_mean: Array, noise: Float32) -> Float32:
        """The start ``[1, C, h, w]``: of what the VAE encoder gave, not yet scaled, and noise."""
        if not self.alpha:
            return noise
        latent = latent_mean.astype(np.float32) * np.float32(self.one_step.scaling_factor)
        return np.float32(self.alpha**0.5) * latent + np.float32((1 - self.alpha) ** 0.5) * noise


def enter(schedule: ScheduleConfig, one_step: OneStep, steps: ManySteps | None, strength: float) -> Entry:
    """Enter the schedule at the share ``strength`` of its timesteps, or of the steps that are taken.

    Raises:
        UsageError: no step would be left.
    """
    if strength == 1:
        return Entry(0.0, one_step, steps)
    if steps is None:
        timestep = round(strength * one_step.timestep)
        a, b = schedule.x0_at(timestep)
        return Entry(schedule.alpha_cumprod(timestep), replace(one_step, timestep=timestep, a=a, b=b), None)
    left = int(strength * len(steps.steps))
    if not left:
        raise UsageError(
            f"--strength {strength:g} leaves none of {len(steps.steps)} steps; give at least {1 / len(steps.steps):g}"
        )
    if isinstance(steps, Euler):
        rest = steps.steps[-left:]
        return Entry(rest[0].scale ** 2, one_step, replace(steps, steps=rest, start=1 / rest[0].scale))
    kept = steps.steps[-left:]
    return Entry(schedule.alpha_cumprod(kept[0].timestep), one_step, replace(steps, steps=kept))
