"""Sampling of trajectory consistency distillation (arXiv 2402.19159), with strategic stochastic sampling."""

from __future__ import annotations

from itertools import pairwise
from typing import Final

from md_export.models.sampling.lcm import distilled_timesteps
from md_export.models.sampling.schedule import ScheduleConfig
from md_export.models.sampling.trajectory import Trajectory, weighted
from md_export.spec.sampler import Step

# gamma of the paper, diffusers' default of eta: how far each step goes back by adding noise.
_ETA: Final = 0.3


def tcd(schedule: ScheduleConfig, count: int) -> Trajectory:
    """Return the steps of diffusers' TCDScheduler.

    Raises:
        ConfigError: the teacher had fewer steps.
    """
    timesteps, alphas = [*distilled_timesteps(schedule, count), 0], schedule.alphas
    steps = []
    for timestep, after in pairwise(timesteps):
        alpha, between = alphas[timestep], alphas[int((1 - _ETA) * after)]
        back = alphas[after] / between
        a, b = weighted(
            ((back * between) ** 0.5, schedule.x0_of(alpha)),
            ((back * (1 - between)) ** 0.5, schedule.noise_of(alpha)),
        )
        steps.append(Step(float(timestep), a, b, noise=(1 - back) ** 0.5))
    return Trajectory(tuple(steps))
