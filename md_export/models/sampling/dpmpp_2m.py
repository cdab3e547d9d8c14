"""DPM-Solver++ of second order, multistep (arXiv 2211.01095, algorithm 2)."""

from __future__ import annotations

import math

from md_export.models.sampling.schedule import ScheduleConfig
from md_export.models.sampling.trajectory import Trajectory, weighted
from md_export.spec.sampler import Step


def dpmpp_2m(schedule: ScheduleConfig, count: int) -> Trajectory:
    """Return the steps of diffusers' DPMSolverMultistepScheduler by default; the first and last are of order 1."""
    timesteps = schedule.timesteps(count, more=0 if schedule.timestep_spacing == "trailing" else 1)
    levels = [*schedule.noise_levels(timesteps), 0.0]
    steps = []
    for number, (timestep, level, after) in enumerate(zip(timesteps, levels, levels[1:], strict=False)):
        signal, signal_after = (level**2 + 1) ** -0.5, (after**2 + 1) ** -0.5
        # h of the paper: the change of log(signal / noise); without noise in the end it is infinite.
        h = math.log(level / after) if after else math.inf
        of_x0, earlier = -signal_after * math.expm1(-h), 0.0
        if 0 < number < count - 1:
            earlier = -of_x0 * h / (2 * math.log(levels[number - 1] / level))
            of_x0 -= earlier
        x0 = schedule.x0_of(signal**2)
        a, b = weighted((signal_after * after / (signal * level), (1.0, 0.0)), (of_x0, x0))
        steps.append(Step(timestep, a, b, 1.0, 0.0, earlier, *x0))
    return Trajectory(tuple(steps))
