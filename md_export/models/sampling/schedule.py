"""The noise schedule and the coefficients computed from it: for one step (section 2 of the paper: x0 from one call)
and for each step of DDIM (arXiv 2010.02502, equation 12 with eta 0).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from md_export.errors import ConfigError
from md_export.spec.sampler import NoiseSchedule

BETA_SCHEDULES: Final = ("linear", "scaled_linear")
SPACINGS: Final = ("leading", "trailing", "linspace")
PREDICTION_TYPES: Final = ("epsilon", "v_prediction", "sample")
# Fields that only diffusers' other samplers read. A checkpoint names one of these samplers, but the noise of its
# training, and so the coefficients computed here, do not depend on it.
OTHER_SAMPLERS: Final = (
    "algorithm_type",
    "clip_sample_range",
    "disable_corrector",
    "dynamic_thresholding_ratio",
    "euler_at_final",
    "final_sigmas_type",
    "flow_shift",
    "interpolation_type",
    "lambda_min_clipped",
    "lower_order_final",
    "original_inference_steps",
    "predict_x0",
    "sample_max_value",
    "shift_terminal",
    "sigma_max",
    "sigma_min",
    "skip_prk_steps",
    "solver_order",
    "solver_p",
    "solver_type",
    "time_shift_type",
    "timestep_scaling",
    "timestep_type",
    "use_beta_sigmas",
    "use_dynamic_shifting",
    "use_exponential_sigmas",
    "use_karras_sigmas",
    "use_lu_lambdas",
    "variance_type",
)


@dataclass(frozen=True)
class ScheduleConfig:
    """The fields of ``scheduler/scheduler_config.json`` that sampling reads.

    The last four are for many steps only; missing ones default to Stable Diffusion's values.
    """

    IGNORED: ClassVar[tuple[str, ...]] = OTHER_SAMPLERS
    REQUIRED: ClassVar[Mapping[str, Any]] = {
        "trained_betas": None,
        "rescale_betas_zero_snr": False,
        "thresholding": False,
        "use_flow_sigmas": False,
    }

    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    prediction_type: str = "epsilon"
    timestep_spacing: str = "leading"
    steps_offset: int = 1
    set_alpha_to_one: bool = False
    clip_sample: bool = False

    def __post_init__(self) -> None:
        if self.beta_schedule not in BETA_SCHEDULES:
            raise ConfigError(f"beta_schedule={self.beta_schedule!r} is unknown; use {' or '.join(BETA_SCHEDULES)}")
        if self.prediction_type not in PREDICTION_TYPES:
            raise ConfigError(
                f"prediction_type={self.prediction_type!r} is unknown; use one of {', '.join(PREDICTION_TYPES)}"
            )

    @property
    def last_timestep(self) -> int:
        """Timestep at which one-step generation calls the UNet."""
        return self.num_train_timesteps - 1

    def alpha_cumprod(self, timestep: int) -> float:
        """Return ᾱ_t, the product of 1-β up to and including ``timestep``."""
        return float(np.prod(1.0 - self._betas()[: timestep + 1]))

    def _betas(self) -> NDArray[np.float64]:
        if self.beta_schedule == "linear":
            return np.linspace(self.beta_start, self.beta_end, self.num_train_timesteps)
        squares: NDArray[np.float64] = np.linspace(self.beta_start**0.5, self.beta_end**0.5, self.num_train_timesteps)
        return squares**2

    def noise(self) -> NoiseSchedule:
        """Return the fields that an export stores."""
        return NoiseSchedule(**{field.name: getattr(self, field.name) for field in fields(NoiseSchedule)})

    def one_step(self) -> tuple[float, float]:
        """Return (a, b) with x0 = a·x_T + b·output at the last timestep.

        With ``epsilon`` and Stable Diffusion's schedule b is -14.6: keep the sum in float32.
        """
        return self.x0_at(self.last_timestep)

    def x0_at(self, timestep: int) -> tuple[float, float]:
        """Return (a, b) with x0 = a·x + b·output at ``timestep``."""
        return self._of_x0(self.alpha_cumprod(timestep))

    def of_one_step(self) -> ScheduleConfig:
        """Return the schedule with defaults in all fields that one step does not depend on."""
        own = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type")
        return ScheduleConfig(**{name: getattr(self, name) for name in own})

    def ddim(self, steps: int) -> tuple[tuple[int, float, float], ...]:
        """Return (timestep, a, b) of each step, the noisiest first: x becomes a·x + b·output.

        Raises:
            ConfigError: the schedule has no such steps, or clips samples, which only pixel-space models do.
        """
        timesteps = [int(timestep) for timestep in self.timesteps(steps)]
        products = np.cumprod(1.0 - self._betas())
        last, ratio = 1.0 if self.set_alpha_to_one else float(products[0]), self.num_train_timesteps // steps
        targets = [float(products[t - ratio]) if t >= ratio else last for t in timesteps]
        pairs = zip(timesteps, targets, strict=True)
        return tuple((t, *self._of_step(float(products[t]), after)) for t, after in pairs)

    def timesteps(self, steps: int, whole: bool = True) -> list[float]:
        """Return the timesteps of diffusers' schedulers, the largest first; ``whole``: rounded in any spacing.

        Raises:
            ConfigError: as :meth:`ddim`.
        """
        if self.clip_sample:
            raise ConfigError(
                "scheduler/scheduler_config.json: clip_sample is for models of pixels; set it to false to take more "
                "than one step"
            )
        timesteps = self._spread(steps, whole)
        if steps > self.num_train_timesteps or not 0 <= timesteps[-1] <= timesteps[0] <= self.last_timestep:
            raise ConfigError(
                f"scheduler/scheduler_config.json has timesteps 0 to {self.last_timestep}, and {steps} steps would "
                f"begin at {timesteps[0]} and end at {timesteps[-1]}; take fewer steps, or change steps_offset"
            )
        return timesteps

    def noise_level(self, timestep: float) -> float:
        """Return the standard deviation of the noise in an unscaled latent at ``timestep``, which may be fractional."""
        products = np.cumprod(1.0 - self._betas())
        return float(np.interp(timestep, np.arange(len(products)), ((1 - products) / products) ** 0.5))

    def euler_step(self, level: float, after: float) -> tuple[float, float]:
        """Return (a, b) from a noise level to the one ``after`` it.

        x becomes a·x + b·output, where the UNet's input has unit variance.
        """
        alpha = 1 / (level**2 + 1)
        a, b = self._of_x0(alpha)
        # x0 = a·(scale·x) + b·output, and x moves towards x0 in proportion to the change of the noise level.
        share = (after - level) / level
        return 1 + share * (1 - a * alpha**0.5), -share * b

    def _spread(self, steps: int, whole: bool) -> list[float]:
        count = self.num_train_timesteps
        if self.timestep_spacing not in SPACINGS:
            raise ConfigError(
                f"scheduler/scheduler_config.json: timestep_spacing={self.timestep_spacing!r} is unknown; use one of "
                f"{', '.join(SPACINGS)}"
            )
        if self.timestep_spacing == "trailing":
            chosen = np.round(np.arange(count, 0, -count / steps)) - 1
        elif self.timestep_spacing == "linspace":
            chosen = np.linspace(0, count - 1, steps)[::-1]
            chosen = chosen.round() if whole else chosen
        else:
            chosen = (np.arange(steps) * (count // steps))[::-1] + self.steps_offset
        return [float(t) for t in chosen]

    def _of_step(self, alpha: float, after: float) -> tuple[float, float]:
        """Return (a, b) from ᾱ to the ᾱ ``after`` it.

        x becomes sqrt(after)·x0 + sqrt(1-after)·noise; both are linear in x and output.
        """
        of_x0, of_noise = self._of_x0(alpha), self._of_noise(alpha)
        signal, noise = after**0.5, (1.0 - after) ** 0.5
        return signal * of_x0[0] + noise * of_noise[0], signal * of_x0[1] + noise * of_noise[1]

    def _of_x0(self, alpha: float) -> tuple[float, float]:
        """Return (a, b) with x0 = a·x + b·output at ᾱ."""
        signal, noise = alpha**0.5, (1.0 - alpha) ** 0.5
        return {
            "epsilon": (1.0 / signal, -noise / signal),
            "v_prediction": (signal, -noise),
            "sample": (0.0, 1.0),
        }[self.prediction_type]

    def _of_noise(self, alpha: float) -> tuple[float, float]:
        """Return (a, b) with noise = a·x + b·output at ᾱ."""
        signal, noise = alpha**0.5, (1.0 - alpha) ** 0.5
        return {
            "epsilon": (0.0, 1.0),
            "v_prediction": (noise, signal),
            "sample": (1.0 / noise, -signal / noise),
        }[self.prediction_type]
