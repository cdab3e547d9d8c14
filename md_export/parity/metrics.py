"""Metrics of a value against its reference. All are computed in float64; peak and range come only from the reference.

A metric never repairs its input: :func:`first_fault` rejects NaN and Inf before any metric is computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from md_export.spec.artifact import Parity
from md_export.spec.tensors import Array


class Check(StrEnum):
    """Checks of a verification, described in docs/parity.md; the value is the word that tables show."""

    MANIFEST = "manifest"
    GOLDEN = "golden files"
    BELONGING = "belonging"
    BYTES = "bytes"
    SURFACE = "names and shapes"
    EXECUTION = "execution"
    SHAPE = "shape"
    DTYPE = "dtype"
    FINITE = "finite"
    FIGURES = "figures"
    GUIDANCE = "guidance"
    PICTURE = "picture"
    STORED = "stored type"
    CONSTANTS = "stored NaN"
    CLAIMS = "claims"
    OVERFLOW = "float16 overflow"
    ORIGIN = "origin"
    TOKENIZER = "tokenizer"
    CASES = "cases"
    APP_FILES = "files of the app"
    PROMPTS = "stored prompts"
    REFERENCE = "reference"
    CHECKPOINT = "checkpoint"
    EXACT = "too exact"
    AUDIT = "weight audit"
    GRAPH = "graph"
    PIN = "pin"


class Fault(str):
    """One line of text that describes a failure, with the check that found it."""

    check: Check

    def __new__(cls, check: Check, text: str) -> Fault:
        """Create a fault of ``check``; the user reads ``text``."""
        line = super().__new__(cls, text)
        line.check = check
        return line

    def of(self, what: str) -> Fault:
        """Return the same fault with its subject ``what`` put before the text."""
        return Fault(self.check, f"{what}: {self}")


@dataclass(frozen=True)
class Finding:
    """A fault as plain data, which a worker process can return; ``component``: the affected one, or any other text."""

    component: str
    check: Check
    text: str

    @property
    def fault(self) -> Fault:
        """Return the finding as a fault."""
        return Fault(self.check, self.text)


# JSON has no infinity: values that are equal bit for bit are reported as this many dB.
EXACT_DB = 999.0
# Errors above this cannot be represented in float64.
_LARGEST = float(np.finfo(np.float64).max)


def first_fault(value: Array, reference: Array) -> Fault | None:
    """Return the first fault (shape, dtype, NaN, Inf) that prevents a comparison, or None."""
    if value.shape != reference.shape:
        return Fault(Check.SHAPE, f"shape {list(value.shape)} instead of {list(reference.shape)}")
    if value.dtype != reference.dtype:
        return Fault(Check.DTYPE, f"dtype {value.dtype} instead of {reference.dtype}")
    if not value.size:
        return Fault(Check.SHAPE, f"shape {list(value.shape)} is empty, so it proves nothing")
    finite = np.isfinite(value)
    if not finite.all():
        nan = int(np.isnan(value).sum())
        text = f"{nan} NaN and {int((~finite).sum()) - nan} Inf of {value.size} values"
        return Fault(Check.FINITE, text)
    return None


def compare(value: Array, reference: Array) -> Parity:
    """Return all figures of one finite non-empty tensor against a finite reference of the same shape.

    SNR is the ratio of the reference's power to the error's; PSNR uses the reference's largest magnitude as its peak.
    """
    got, want = value.astype(np.float64).ravel(), reference.astype(np.float64).ravel()
    with np.errstate(over="ignore"):
        largest = min(float(np.max(np.abs(got - want))), _LARGEST)
    # Scaling by a power of two changes no digit and no ratio, and squares of values up to 1 do not overflow.
    exponent = int(np.frexp(max(np.max(np.abs(got)), np.max(np.abs(want))))[1])
    got, want = np.ldexp(got, -exponent), np.ldexp(want, -exponent)
    error = got - want
    noise = float(np.mean(error**2))
    return Parity(
        snr_db=_decibel(float(np.mean(want**2)), noise),
        psnr_db=_decibel(float(np.max(np.abs(want))) ** 2, noise),
        cosine=_cosine(got, want),
        max_abs=largest,
    )


def guidance_snr_db(value: Array, reference: Array) -> float:
    """Return the SNR of the difference between the halves of a guided output ``[2, …]``: with the prompt - without.

    Raises nothing for finite values; call :func:`first_fault` first.
    """
    got, want = (both.astype(np.float64) for both in (value, reference))
    return snr_db(got[1:] - got[:1], want[1:] - want[:1])


def snr_db(value: Array, reference: Array) -> float:
    """Return the SNR in dB of a tensor against a finite reference of the same shape; -:data:`EXACT_DB` if not finite.

    Use it to search for errors; a verification calls :func:`first_fault` first.
    """
    want = reference.astype(np.float64).ravel()
    noise = float(np.mean((value.astype(np.float64).ravel() - want) ** 2))
    return _decibel(float(np.mean(want**2)), noise) if np.isfinite(noise) else -EXACT_DB


def worst(figures: list[Parity]) -> Parity:
    """Return the least favourable value of each figure; ``figures`` must not be empty."""
    guided = [item.guidance_snr_db for item in figures if item.guidance_snr_db is not None]
    return Parity(
        snr_db=min(item.snr_db for item in figures),
        psnr_db=min(item.psnr_db for item in figures),
        cosine=min(item.cosine for item in figures),
        max_abs=max(item.max_abs for item in figures),
        guidance_snr_db=min(guided, default=None),
    )


def _decibel(signal: float, noise: float) -> float:
    if noise == 0.0:
        return EXACT_DB
    # A nonzero value against a zero reference gets the lowest figure.
    ratio = signal / noise
    return min(max(float(10.0 * np.log10(ratio)), -EXACT_DB), EXACT_DB) if ratio > 0.0 else -EXACT_DB


def _cosine(got: NDArray[np.float64], want: NDArray[np.float64]) -> float:
    # numpy's own sum: that of a BLAS library differs in its last digits with the number of threads.
    norms = float(np.sqrt(np.sum(got**2)) * np.sqrt(np.sum(want**2)))
    if norms == 0.0:
        return 1.0 if np.array_equal(got, want) else 0.0
    return float(np.sum(got * want) / norms)
