"""Sampling of latent consistency models (arXiv 2310.04378): estimate x0, then add noise for the next timestep."""

from __future__ import annotations

import numpy as np

from md_export.errors import ConfigError
from md_export.models.sampling.schedule import ScheduleConfig
from md_export.models.sampling.trajectory import Trajectory, weighted
from md_export.spec.sampler import Step

# diffusers' sigma_data, a constant of the distillation.
_SIGMA = 0.5


def lcm(schedule: ScheduleConfig, count: int) -> Trajectory:
    """Return the steps of diffusers' LCMScheduler.

    Raises:
        ConfigError: the teacher had fewer steps.
    """
    timesteps, alphas = distilled_timesteps(schedule, count), schedule.alphas
    steps = []
    for number, timestep in enumerate(timesteps):
        scaled = timestep * schedule.timestep_scaling
        skip, out = _SIGMA**2 / (scaled**2 + _SIGMA**2), scaled / (scaled**2 + _SIGMA**2) ** 0.5
        x0 = weighted((out, schedule.x0_of(alphas[timestep])), (skip, (1.0, 0.0)))
        after = alphas[timesteps[number + 1]] if number < count - 1 else 1.0
        a, b = weighted((after**0.5, x0))
        steps.append(Step(float(timestep), a, b, noise=(1 - after) ** 0.5))
    return Trajectory(tuple(steps))


def distilled_timesteps(schedule: ScheduleConfig, count: int) -> list[int]:
    """Return evenly spread timesteps out of the teacher's, the largest first.

    Raises:
        ConfigError: the teacher had fewer timesteps.
    """
    teacher = schedule.original_inference_steps
    if count > teacher:
        raise ConfigError(
            f"scheduler/scheduler_config.json: the model was distilled from {teacher} steps, original_inference_steps; "
            f"{count} are too many, take fewer"
        )
    all_of_them = (np.arange(1, teacher + 1) * (schedule.num_train_timesteps // teacher) - 1)[::-1]
    chosen = all_of_them[np.floor(np.linspace(0, teacher, count, endpoint=False)).astype(int)]
    return [int(timestep) for timestep in chosen]
