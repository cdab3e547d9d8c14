"""Euler's method over noise levels (arXiv 2206.00364, algorithm 1 without churn), also with added noise (ancestral).

x is the latent plus noise of the current level; the UNet gets it scaled to unit variance.
"""

from __future__ import annotations

from md_export.models.sampling.schedule import ScheduleConfig
from md_export.models.sampling.trajectory import Trajectory
from md_export.spec.sampler import Step


def euler(schedule: ScheduleConfig, count: int) -> Trajectory:
    """Return the steps of diffusers' EulerDiscreteScheduler."""
    return _trajectory(schedule, count, ancestral=False)


def euler_ancestral(schedule: ScheduleConfig, count: int) -> Trajectory:
    """Return the steps of diffusers' EulerAncestralDiscreteScheduler, which adds new noise after each step."""
    return _trajectory(schedule, count, ancestral=True)


def _trajectory(schedule: ScheduleConfig, count: int, ancestral: bool) -> Trajectory:
    timesteps = schedule.timesteps(count, whole=False)
    # diffusers' ancestral class ignores the fields for the spacing of levels.
    plain = [*schedule.noise_levels(timesteps), 0.0]
    timesteps, levels = (timesteps, plain) if ancestral else schedule.levels(timesteps, whole=False)
    steps = []
    for timestep, level, after in zip(timesteps, levels, levels[1:], strict=False):
        up = (after**2 * (level**2 - after**2) / level**2) ** 0.5 if ancestral else 0.0
        down = (after**2 - up**2) ** 0.5
        scale = (level**2 + 1) ** -0.5
        of_sample, of_output = schedule.x0_of(scale**2)
        # x moves towards x0 = of_sample·(scale·x) + of_output·output, in proportion to the change of the noise level.
        share = (down - level) / level
        steps.append(Step(timestep, 1 + share * (1 - of_sample * scale), -share * of_output, scale, up))
    start = (levels[0] ** 2 + 1) ** 0.5 if schedule.timestep_spacing == "leading" else levels[0]
    return Trajectory(tuple(steps), start)
