"""How far a value is from its reference. Everything in float64; peak and range come from the reference alone.

A metric never repairs its input: NaN and Inf are for :func:`first_fault` to reject before any figure is computed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from md_export.artifact import Parity
from md_export.tensors import Array

# float64 JSON has no infinity: equal bit for bit is reported as this many dB.
EXACT_DB = 999.0


def first_fault(value: Array, reference: Array) -> str | None:
    """What makes ``value`` incomparable (shape, dtype, NaN, Inf), or None."""
    if value.shape != reference.shape:
        return f"shape {list(value.shape)} instead of {list(reference.shape)}"
    if value.dtype != reference.dtype:
        return f"dtype {value.dtype} instead of {reference.dtype}"
    finite = np.isfinite(value)
    if not finite.all():
        nan = int(np.isnan(value).sum())
        return f"{nan} NaN and {int((~finite).sum()) - nan} Inf of {value.size} values"
    return None


def compare(value: Array, reference: Array) -> Parity:
    """All figures of one finite tensor against a finite reference of the same shape.

    SNR is the reference's power over the error's; PSNR takes the reference's largest magnitude as peak.
    """
    got, want = value.astype(np.float64).ravel(), reference.astype(np.float64).ravel()
    error = got - want
    noise = float(np.mean(error**2))
    return Parity(
        snr_db=_decibel(float(np.mean(want**2)), noise),
        psnr_db=_decibel(float(np.max(np.abs(want), initial=0.0)) ** 2, noise),
        cosine=_cosine(got, want),
        max_abs=float(np.max(np.abs(error), initial=0.0)),
    )


def worst(figures: list[Parity]) -> Parity:
    """The least favourable value of each figure; ``figures`` must not be empty."""
    return Parity(
        snr_db=min(item.snr_db for item in figures),
        psnr_db=min(item.psnr_db for item in figures),
        cosine=min(item.cosine for item in figures),
        max_abs=max(item.max_abs for item in figures),
    )


def _decibel(signal: float, noise: float) -> float:
    if noise == 0.0:
        return EXACT_DB
    # A zero reference met by a nonzero value is as wrong as can be.
    return float(10.0 * np.log10(signal / noise)) if signal > 0.0 else -EXACT_DB


def _cosine(got: NDArray[np.float64], want: NDArray[np.float64]) -> float:
    norms = float(np.linalg.norm(got) * np.linalg.norm(want))
    if norms == 0.0:
        return 1.0 if np.array_equal(got, want) else 0.0
    return float(np.dot(got, want) / norms)
