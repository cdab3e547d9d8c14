"""Thresholds of a recipe: of one component, and of the comparison with an older export."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pydantic import ConfigDict

# Core AI's runtime computes nano's first chunk in float16 with 48.8 dB; the recipe's threshold for the UNet is 55 dB.
_INNER_DB: Final = 10.0
# A threshold of NaN or -Infinity would never fail.
_FORBID: Final = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Tolerance:
    """Thresholds for one component's outputs, compared with the golden outputs in float64.

    ``guidance_snr_db`` is for the difference between the outputs with the prompt and without it, which guidance
    multiplies (arXiv 2207.12598). At 10 dB the error is a third of the difference. It can be far larger than the error
    of each output: a published UNet with 8-bit weights had a difference of 0.009 instead of 0.175.

    Attributes:
        snr_db, psnr_db: least signal-to-noise ratio and peak signal-to-noise ratio, in dB.
        cosine: least cosine of the flattened tensors.
        max_abs: largest absolute error of a value.
        guidance_snr_db: least SNR in dB of the difference that the prompt makes, where guidance is used.
    """

    __pydantic_config__ = _FORBID

    snr_db: float
    psnr_db: float | None = None
    cosine: float | None = None
    max_abs: float | None = None
    guidance_snr_db: float = 10.0

    def of_inner_values(self) -> Tolerance:
        """Return the tolerance for values that a chunk passes to later chunks, which may have any scale and shape."""
        return Tolerance(self.snr_db - _INNER_DB, guidance_snr_db=self.guidance_snr_db)


@dataclass(frozen=True)
class Regression:
    """Limits on how much worse than an older export a component or the picture may be; improvements never fail.

    Attributes:
        snr_db_loss: loss of a component's SNR, in dB.
        picture_psnr_db_loss: loss of the picture's PSNR, in dB.
        bytes_growth, ops_growth: growth of an artifact's size and number of operations, as a share of the older one's.
        new_lint_findings: number of operations with a lint finding that the older artifact does not have.
        new_cpu_ops: number of operations that the GPU engine newly leaves to the CPU; checked with ``--gpu``.
    """

    __pydantic_config__ = _FORBID

    snr_db_loss: float
    picture_psnr_db_loss: float
    bytes_growth: float
    ops_growth: float
    new_lint_findings: int
    new_cpu_ops: int
