"""The noise schedule and the one-step coefficients that follow from it (section 2 of the paper: x0 from one call)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from md_export.errors import ConfigError

BETA_SCHEDULES: Final = ("linear", "scaled_linear")
PREDICTION_TYPES: Final = ("epsilon", "v_prediction", "sample")


@dataclass(frozen=True)
class ScheduleConfig:
    """The fields of ``scheduler/scheduler_config.json`` that one-step sampling reads."""

    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    prediction_type: str = "epsilon"

    def __post_init__(self) -> None:
        if self.beta_schedule not in BETA_SCHEDULES:
            raise ConfigError(f"beta_schedule={self.beta_schedule!r} is unknown; use {' or '.join(BETA_SCHEDULES)}")
        if self.prediction_type not in PREDICTION_TYPES:
            raise ConfigError(
                f"prediction_type={self.prediction_type!r} is unknown; use one of {', '.join(PREDICTION_TYPES)}"
            )

    @property
    def last_timestep(self) -> int:
        """The step at which one-step generation calls the UNet."""
        return self.num_train_timesteps - 1

    def alpha_cumprod(self, timestep: int) -> float:
        """ᾱ_t, the product of 1-β up to and including ``timestep``."""
        if self.beta_schedule == "linear":
            betas = np.linspace(self.beta_start, self.beta_end, self.num_train_timesteps)
        else:
            betas = np.linspace(self.beta_start**0.5, self.beta_end**0.5, self.num_train_timesteps) ** 2
        return float(np.prod(1.0 - betas[: timestep + 1]))

    def one_step(self) -> tuple[float, float]:
        """(a, b) with x0 = a·x_T + b·output at the last timestep.

        With ``epsilon`` b is -14.6 at Stable Diffusion's schedule: keep the sum in float32.
        """
        alpha = self.alpha_cumprod(self.last_timestep)
        signal, noise = alpha**0.5, (1.0 - alpha) ** 0.5
        return {
            "epsilon": (1.0 / signal, -noise / signal),
            "v_prediction": (signal, -noise),
            "sample": (0.0, 1.0),
        }[self.prediction_type]
