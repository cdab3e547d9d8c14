"""Euler's method on the straight paths of flow matching (arXiv 2210.02747; shifted as in arXiv 2403.03206)."""

from __future__ import annotations

import numpy as np

from md_export.models.sampling.schedule import ScheduleConfig
from md_export.models.sampling.trajectory import Trajectory
from md_export.spec.sampler import Step


def flow_match_euler(schedule: ScheduleConfig, count: int) -> Trajectory:
    """Return the steps of diffusers' FlowMatchEulerDiscreteScheduler with a constant shift."""
    trained, shift = schedule.num_train_timesteps, schedule.shift

    def shifted(share: float) -> float:
        return shift * share / (1 + (shift - 1) * share)

    # diffusers applies the shift twice: to the limits, and then to the values between them.
    shares = [shifted(share) for share in np.linspace(shifted(1.0), shifted(1 / trained), count).tolist()]
    pairs = zip(shares, [*shares[1:], 0.0], strict=True)
    return Trajectory(tuple(Step(share * trained, 1.0, after - share) for share, after in pairs))
