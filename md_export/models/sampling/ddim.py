"""DDIM without added noise (arXiv 2010.02502, equation 12 with eta 0)."""

from __future__ import annotations

from md_export.models.sampling.schedule import ScheduleConfig
from md_export.models.sampling.trajectory import Trajectory, weighted
from md_export.spec.sampler import Step


def ddim(schedule: ScheduleConfig, count: int) -> Trajectory:
    """Return the steps of diffusers' DDIMScheduler."""
    timesteps, alphas = schedule.timesteps(count), schedule.alphas
    back = schedule.num_train_timesteps // count
    steps = []
    for timestep in map(int, timesteps):
        alpha, after = alphas[timestep], alphas[timestep - back] if timestep >= back else schedule.last_alpha
        a, b = weighted((after**0.5, schedule.x0_of(alpha)), ((1 - after) ** 0.5, schedule.noise_of(alpha)))
        steps.append(Step(float(timestep), a, b))
    return Trajectory(tuple(steps))
