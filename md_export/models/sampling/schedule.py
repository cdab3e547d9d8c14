"""Noise schedule of a checkpoint, and its constants for one step (section 2 of the paper: x0 from one call)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from md_export.errors import ConfigError
from md_export.models.sampling.solver import SolverConfig
from md_export.spec.sampler import NoiseSchedule

BETA_SCHEDULES: Final = ("linear", "scaled_linear")
SPACINGS: Final = ("leading", "trailing", "linspace")
PREDICTION_TYPES: Final = ("epsilon", "v_prediction", "sample")
# Fields that only unsupported samplers of diffusers read, or that matter only with an unsupported field.
OTHER_SAMPLERS: Final = (
    "base_image_seq_len",
    "base_shift",
    "clip_sample_range",
    "disable_corrector",
    "dynamic_thresholding_ratio",
    "flow_shift",
    "max_image_seq_len",
    "max_shift",
    "predict_x0",
    "sample_max_value",
    "skip_prk_steps",
    "solver_p",
    "time_shift_type",
    "variance_type",
)


@dataclass(frozen=True)
class ScheduleConfig(SolverConfig):
    """Fields of ``scheduler/scheduler_config.json`` that affect sampling.

    Fields from ``timestep_spacing`` on are for many steps only; the defaults are Stable Diffusion's values.
    """

    IGNORED: ClassVar[tuple[str, ...]] = OTHER_SAMPLERS
    REQUIRED: ClassVar[Mapping[str, Any]] = {
        "trained_betas": None,
        "thresholding": False,
        "use_flow_sigmas": False,
    }

    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    prediction_type: str = "epsilon"
    rescale_betas_zero_snr: bool = False
    timestep_spacing: str = "leading"
    steps_offset: int = 1
    set_alpha_to_one: bool = False
    clip_sample: bool = False
    original_inference_steps: int = 50
    shift: float = 1.0

    def __post_init__(self) -> None:
        if self.beta_schedule not in BETA_SCHEDULES:
            raise ConfigError(f"beta_schedule={self.beta_schedule!r} is unknown; use {' or '.join(BETA_SCHEDULES)}")
        if self.prediction_type not in PREDICTION_TYPES:
            raise ConfigError(
                f"prediction_type={self.prediction_type!r} is unknown; use one of {', '.join(PREDICTION_TYPES)}"
            )
        if self.rescale_betas_zero_snr and self.prediction_type == "epsilon":
            raise ConfigError(
                "rescale_betas_zero_snr leaves no signal at the last timestep, where x0 cannot be computed from "
                "epsilon; such models predict v: set prediction_type to v_prediction"
            )

    @property
    def last_timestep(self) -> int:
        """Largest timestep, which sampling in one step uses by default."""
        return self.num_train_timesteps - 1

    def alpha_cumprod(self, timestep: int) -> float:
        """Return ᾱ_t, the product of 1-β up to and including ``timestep``."""
        # np.prod, not cumprod: artifacts contain these constants, and the last digit depends on the order of factors.
        whole = self.rescale_betas_zero_snr
        return float(self.alphas[timestep] if whole else np.prod(1.0 - self._betas()[: timestep + 1]))

    def _betas(self) -> NDArray[np.float64]:
        if self.beta_schedule == "linear":
            return np.linspace(self.beta_start, self.beta_end, self.num_train_timesteps)
        squares: NDArray[np.float64] = np.linspace(self.beta_start**0.5, self.beta_end**0.5, self.num_train_timesteps)
        return squares**2

    @cached_property
    def alphas(self) -> NDArray[np.float64]:
        """ᾱ of every timestep; the last is 0 with zero terminal SNR (arXiv 2305.08891, algorithm 1)."""
        alphas = np.cumprod(1.0 - self._betas(), dtype=np.float64)
        if not self.rescale_betas_zero_snr:
            return alphas
        signal = np.sqrt(alphas)
        rescaled: NDArray[np.float64] = np.square((signal - signal[-1]) * signal[0] / (signal[0] - signal[-1]))
        return rescaled

    @property
    def last_alpha(self) -> float:
        """ᾱ after the last of many steps."""
        return 1.0 if self.set_alpha_to_one else float(self.alphas[0])

    def shares(self, timestep: float) -> tuple[float, float]:
        """Return the factors of latent and noise in a sample at ``timestep``, which may be fractional."""
        level = self.noise_levels([timestep])[0]
        whole = float(timestep).is_integer()
        alpha = self.alpha_cumprod(int(timestep)) if whole else 1 / (level**2 + 1)
        return alpha**0.5, (1 - alpha) ** 0.5

    def noise(self) -> NoiseSchedule:
        """Return the fields that the manifest stores."""
        return NoiseSchedule(**{field.name: getattr(self, field.name) for field in fields(NoiseSchedule)})

    def x0_at(self, timestep: int) -> tuple[float, float]:
        """Return (a, b) with x0 = a·x + b·output at ``timestep``.

        At the last timestep, with ``epsilon`` and Stable Diffusion's schedule, b is -14.6: keep the sum in float32.
        """
        return self.x0_of(self.alpha_cumprod(timestep))

    def of_one_step(self) -> ScheduleConfig:
        """Return the schedule with defaults in all fields that do not affect one step."""
        own = (*(field.name for field in fields(NoiseSchedule)), "prediction_type")
        return ScheduleConfig(**{name: getattr(self, name) for name in own})

    def timesteps(self, count: int, whole: bool = True, more: int = 0) -> list[float]:
        """Return the timesteps of diffusers' schedulers, the largest first.

        ``whole``: round them for any spacing. ``more``: number of timesteps to compute in addition and drop at the end.

        Raises:
            ConfigError: the schedule does not support the steps, or clips samples, which is for pixel-space models.
        """
        if self.clip_sample:
            raise ConfigError(
                "scheduler/scheduler_config.json: clip_sample is for pixel-space models; set it to false to take more "
                "than one step"
            )
        timesteps = self._spread(count + more, whole)[:count]
        if count > self.num_train_timesteps or not 0 <= timesteps[-1] <= timesteps[0] <= self.last_timestep:
            raise ConfigError(
                f"scheduler/scheduler_config.json has timesteps 0 to {self.last_timestep}, and {count} steps would "
                f"start at {timesteps[0]} and end at {timesteps[-1]}; take fewer steps, or change steps_offset"
            )
        return timesteps

    def noise_levels(self, timesteps: Sequence[float]) -> list[float]:
        """Return the standard deviation of the noise in unscaled latents at each timestep, which may be fractional."""
        alphas = self.alphas.copy()
        # Without signal the level would be infinite; diffusers uses this value of ᾱ.
        alphas[-1] = max(alphas[-1], 2.0**-24)
        levels: list[float] = np.interp(timesteps, np.arange(len(alphas)), ((1 - alphas) / alphas) ** 0.5).tolist()
        return levels

    def levels(self, timesteps: Sequence[float], whole: bool) -> tuple[list[float], list[float]]:
        """Return timesteps and their noise levels, spaced by the config, with a final level after the last step.

        ``whole``: as diffusers' DPMSolverMultistepScheduler, which spreads levels over the whole schedule and rounds.

        Raises:
            ConfigError: the levels do not decrease.
        """
        levels, last = self.noise_levels(timesteps), self.noise_levels([0])[0]
        lu = bool(whole and self.use_lu_lambdas and not self.use_karras_sigmas)
        if lu or self.use_karras_sigmas or self.use_exponential_sigmas:
            largest, smallest = self.noise_levels([self.last_timestep, 0]) if whole else (levels[0], levels[-1])
            levels = self.respaced(largest, smallest, len(levels), limited=not lu)
            known = self.noise_levels(range(self.num_train_timesteps))
            timesteps = np.interp(np.log(levels), np.log(known), range(len(known))).tolist()
            if whole:
                # diffusers rounds in these two cases and truncates in others.
                rounds = lu or self.use_karras_sigmas
                timesteps = [float(round(t) if rounds else int(t)) for t in timesteps]
        levels.append(0.0 if self.final_sigmas_type == "zero" else last)
        if levels != sorted(levels, reverse=True) or len({*levels[:-1]}) < len(levels) - 1:
            raise ConfigError(
                f"scheduler/scheduler_config.json: sigma_min={self.sigma_min}, sigma_max={self.sigma_max} and "
                f"final_sigmas_type={self.final_sigmas_type!r} make noise levels that do not decrease at each step; "
                "correct them"
            )
        return list(timesteps), levels

    def _spread(self, count: int, whole: bool) -> list[float]:
        trained = self.num_train_timesteps
        if self.timestep_spacing not in SPACINGS:
            raise ConfigError(
                f"scheduler/scheduler_config.json: timestep_spacing={self.timestep_spacing!r} is unknown; use one of "
                f"{', '.join(SPACINGS)}"
            )
        if self.timestep_spacing == "trailing":
            chosen = np.round(np.arange(trained, 0, -trained / count)) - 1
        elif self.timestep_spacing == "linspace":
            chosen = np.linspace(0, trained - 1, count)[::-1]
            chosen = chosen.round() if whole else chosen
        else:
            chosen = (np.arange(count) * (trained // count))[::-1] + self.steps_offset
        return [float(t) for t in chosen]

    def x0_of(self, alpha: float) -> tuple[float, float]:
        """Return (a, b) with x0 = a·x + b·output at ᾱ."""
        signal, noise = float(alpha**0.5), float((1.0 - alpha) ** 0.5)
        if self.prediction_type == "epsilon":
            return 1.0 / signal, -noise / signal
        return (signal, -noise) if self.prediction_type == "v_prediction" else (0.0, 1.0)

    def noise_of(self, alpha: float) -> tuple[float, float]:
        """Return (a, b) with noise = a·x + b·output at ᾱ."""
        signal, noise = float(alpha**0.5), float((1.0 - alpha) ** 0.5)
        if self.prediction_type == "sample":
            return 1.0 / noise, -signal / noise
        return (0.0, 1.0) if self.prediction_type == "epsilon" else (noise, signal)
