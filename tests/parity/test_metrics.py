from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from md_export.parity.metrics import EXACT_DB, compare, first_fault, guidance_snr_db, worst

REFERENCE = np.asarray([[1.0, -2.0, 3.0, 0.5]], dtype=np.float32)


def test_known_figures() -> None:
    figures = compare(REFERENCE * np.float32(1.1), REFERENCE)
    assert figures.snr_db == pytest.approx(20.0, abs=1e-4)
    assert figures.psnr_db == pytest.approx(20.0 + 10 * np.log10(9.0 / np.mean(REFERENCE**2)), abs=1e-4)
    assert figures.cosine == pytest.approx(1.0)
    assert figures.max_abs == pytest.approx(0.3, abs=1e-6)


def test_a_difference_that_is_gone_shows_only_in_the_guidance_figure() -> None:
    """Figures of a published w8a16 UNet: its halves differ by 0.009 instead of 0.175, and each is right to 20 dB."""
    rng = np.random.default_rng(0)
    common, direction = rng.standard_normal((2, 1, 4, 16, 16)).astype(np.float32)
    right, wrong = (np.concatenate([common, common + size * direction]) for size in (0.175, 0.009))
    assert compare(wrong, right).snr_db > 15
    assert guidance_snr_db(wrong, right) == pytest.approx(20 * np.log10(0.175 / 0.166), abs=0.01)
    assert guidance_snr_db(right * np.float32(1.1), right) == pytest.approx(20.0, abs=0.01)


def test_equal_values_are_exact() -> None:
    assert compare(REFERENCE, REFERENCE).snr_db == EXACT_DB


def test_peak_is_the_references() -> None:
    loud = compare(REFERENCE * 100, REFERENCE)
    assert loud.psnr_db < 0


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.full((1, 4), np.nan, np.float32), "4 NaN and 0 Inf of 4"),
        (np.asarray([[1, np.inf, 1, 1]], np.float32), "0 NaN and 1 Inf"),
        (np.ones((4,), np.float32), "shape [4] instead of [1, 4]"),
        (np.ones((1, 1), np.float32), "shape [1, 1]"),
        (np.ones((1, 4), np.float64), "dtype float64 instead of float32"),
    ],
)
def test_faults_come_before_figures(value: np.ndarray, expected: str) -> None:
    assert expected in str(first_fault(value, REFERENCE))


def test_no_fault() -> None:
    assert first_fault(REFERENCE + 5, REFERENCE) is None


@pytest.mark.parametrize("broken", [np.zeros_like(REFERENCE), -REFERENCE, REFERENCE[:, ::-1], 2 * REFERENCE])
def test_wrong_values_score_low(broken: np.ndarray) -> None:
    assert compare(np.ascontiguousarray(broken), REFERENCE).snr_db <= 0.1


def test_zero_reference_is_no_free_pass() -> None:
    zero = np.zeros((3,), np.float32)
    assert compare(zero, zero).snr_db == EXACT_DB
    assert compare(zero + 1e-3, zero).snr_db == -EXACT_DB
    assert compare(zero + 1e-3, zero).cosine == 0.0


def test_worst_takes_the_least_of_each() -> None:
    a, b = compare(REFERENCE + 1, REFERENCE), compare(REFERENCE * 1.01, REFERENCE)
    assert worst([a, b]).snr_db == min(a.snr_db, b.snr_db)
    assert worst([a, b]).max_abs == max(a.max_abs, b.max_abs)


@given(arrays(np.float32, (7,), elements=st.floats(-1e6, 1e6, width=32)), st.floats(0.5, 2.0))
def test_scale_error_costs_what_it_should(reference: np.ndarray, factor: float) -> None:
    figures = compare((reference.astype(np.float64) * factor).astype(np.float64), reference.astype(np.float64))
    assert np.isfinite([figures.snr_db, figures.psnr_db, figures.cosine, figures.max_abs]).all()
    if factor != 1.0 and np.abs(reference).max() > 1e-3:
        assert figures.snr_db == pytest.approx(-20 * np.log10(abs(factor - 1)), abs=1e-3)
