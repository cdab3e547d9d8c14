"""Second-order multistep DPM-Solver++ (arXiv 2211.01095, algorithm 2), as an ODE or as an SDE (appendix B)."""

from __future__ import annotations

import math
from typing import Final

from md_export.models.sampling.schedule import ScheduleConfig
from md_export.models.sampling.trajectory import Trajectory, weighted
from md_export.spec.sampler import Step

# With fewer steps diffusers lowers the order of the last one (lower_order_final).
_FEW_STEPS: Final = 15


def dpmpp_2m(schedule: ScheduleConfig, count: int) -> Trajectory:
    """Return the steps of diffusers' DPMSolverMultistepScheduler; by default the first and last are of order 1."""
    timesteps = schedule.timesteps(count, more=0 if schedule.timestep_spacing == "trailing" else 1)
    timesteps, levels = schedule.levels(timesteps, whole=True)
    fresh, steps = schedule.algorithm_type.startswith("sde-"), []
    last_is_first_order = (
        schedule.final_sigmas_type == "zero"
        or schedule.euler_at_final
        or (schedule.lower_order_final and count < _FEW_STEPS)
    )
    for number, (timestep, level, after) in enumerate(zip(timesteps, levels, levels[1:], strict=False)):
        signal, signal_after = (level**2 + 1) ** -0.5, (after**2 + 1) ** -0.5
        # h of the paper: the change of log(signal / noise); infinite if the step ends without noise.
        h = math.log(level / after) if after else math.inf
        of_x0, earlier = -signal_after * math.expm1(-2 * h if fresh else -h), 0.0
        if schedule.solver_order > 1 and number and not (number == count - 1 and last_is_first_order):
            earlier = -of_x0 * h / (2 * math.log(levels[number - 1] / level))
            of_x0 -= earlier
        x0, of_x = schedule.x0_of(signal**2), signal_after * after / (signal * level)
        a, b = weighted((of_x * math.exp(-h) if fresh else of_x, (1.0, 0.0)), (of_x0, x0))
        noise = signal_after * after * (-math.expm1(-2 * h)) ** 0.5 if fresh else 0.0
        steps.append(Step(timestep, a, b, 1.0, noise, earlier, *x0))
    return Trajectory(tuple(steps))
