"""Ranges from values: what an outlier does to each observer, and that it does not matter how values come."""

from __future__ import annotations

from collections.abc import Sequence
from math import erf, exp, pi, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from md_export.spec.calibration import RangeRule
from md_export.targets.observers import Extremes, ObserverTable, observer

RULES = [RangeRule(), RangeRule("percentile", 99.9), RangeRule("mse")]
GAUSSIAN = np.random.default_rng(0).normal(size=1_000_000).astype(np.float32)


def floats(values: Sequence[float]) -> np.ndarray:
    return np.asarray(values, np.float32)


def bounds(rule: RangeRule, *tensors: np.ndarray, symmetric: bool = True) -> tuple[float, float]:
    seen: Extremes = observer(rule, symmetric)
    for tensor in tensors:
        seen.add(tensor)
    return seen.bounds()


def with_outlier(size: float) -> np.ndarray:
    values = GAUSSIAN.copy()
    values[1234] = size
    return values


@pytest.mark.parametrize("symmetric", [True, False])
def test_an_outlier_moves_the_extremes_and_not_the_percentile(symmetric: bool) -> None:
    def most(rule: RangeRule, values: np.ndarray) -> float:
        return bounds(rule, values, symmetric=symmetric)[1]

    extremes, percentile, _ = RULES
    assert most(extremes, with_outlier(60)) == 60
    assert most(extremes, GAUSSIAN) < 6
    assert most(percentile, GAUSSIAN) == pytest.approx(3.29, rel=0.01)
    assert most(percentile, with_outlier(60)) == pytest.approx(most(percentile, GAUSSIAN), rel=0.01)


def gaussian_error(reach: float) -> float:
    """Mean squared error of 254 steps from -reach to reach for a standard normal variable: rounding and clipping."""
    beyond = 0.5 * (1 - erf(reach / sqrt(2)))
    clipped = 2 * ((reach**2 + 1) * beyond - reach * exp(-(reach**2) / 2) / sqrt(2 * pi))
    return (2 * reach / 254) ** 2 / 12 * (1 - 2 * beyond) + clipped


def test_the_least_error_of_a_gaussian_is_where_mathematics_has_it() -> None:
    tried = np.linspace(2, 6, 2001)
    best = tried[np.argmin([gaussian_error(reach) for reach in tried])]
    low, high = bounds(RangeRule("mse"), GAUSSIAN)
    assert low == -high
    # Beside the least the error is flat.
    assert high == pytest.approx(best, rel=0.05)
    assert gaussian_error(high) == pytest.approx(gaussian_error(best), rel=0.01)


def squared_error(values: np.ndarray, low: float, high: float, steps: int) -> float:
    step = (high - low) / steps
    return float(((np.rint(np.clip(values, low, high) / step) * step - values) ** 2).sum(dtype=np.float64))


@pytest.mark.parametrize("outlier", [8.0, 30.0, 150.0])
def test_no_range_has_less_error_than_the_least(outlier: float) -> None:
    values = with_outlier(outlier).astype(np.float64)
    low, high = bounds(RangeRule("mse"), values, symmetric=False)
    found = squared_error(values, low, high, 255)
    others = [
        squared_error(values, 1.1**k * low, 1.1**n * high, 255) for k in (-3, -1, 0, 1, 3) for n in (-3, -1, 0, 1, 3)
    ]
    assert found <= 1.02 * min(others)
    assert found < squared_error(values, float(values.min()), float(values.max()), 255)


def test_a_value_too_far_to_be_worth_it_is_clipped_and_one_that_is_worth_it_is_not() -> None:
    """Of 1000 values at 0.01 and one at 100, the one counts; of a million at 1 and one at 2, the million."""
    few = np.full(1001, 0.01, np.float32)
    few[0] = 100
    assert bounds(RangeRule("mse"), few)[1] == 100
    many = (GAUSSIAN / np.abs(GAUSSIAN).max()).astype(np.float32)
    many[0] = 3
    assert bounds(RangeRule("mse"), many)[1] < 2


def test_zeros_cost_no_level() -> None:
    """After a ReLU half of all values are zero, which every range represents."""
    low, high = bounds(RangeRule("mse"), np.maximum(GAUSSIAN, 0), symmetric=False)
    assert low == 0
    assert 3.5 < high < 5


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.observer)
@settings(max_examples=30, deadline=None)
@given(st.permutations([1e-6, 0.02, 1.0, 40.0]), st.integers(1, 2999))
def test_portions_and_their_order_do_not_matter(
    rule: RangeRule, symmetric: bool, scales: list[float], cut: int
) -> None:
    values = GAUSSIAN[:3000] * np.repeat(floats(scales), 750)
    whole = bounds(rule, values, symmetric=symmetric)
    assert bounds(rule, values[:cut], values[cut:], symmetric=symmetric) == whole
    assert bounds(rule, values[cut:], values[:cut], symmetric=symmetric) == whole


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.observer)
def test_ranges_never_leave_what_was_seen(rule: RangeRule) -> None:
    for values in (np.zeros(5, np.float32), floats([2.5]), floats([3, 4]), floats([-1, -0.5])):
        low, high = bounds(rule, values, symmetric=False)
        assert low >= values.min()
        assert high <= values.max()


def test_all_of_them_is_the_extremes() -> None:
    values = with_outlier(60)
    assert bounds(RangeRule("percentile", 100), values, symmetric=False) == bounds(RangeRule(), values)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.observer)
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_what_has_no_range_is_refused_by_name(rule: RangeRule, wrong: float) -> None:
    table = ObserverTable(rule, symmetric=False)
    table.add("x", floats([1, 2]))
    with pytest.raises(ValueError, match=r"y reaches .* which has no int8 scale"):
        table.add("y", floats([1, wrong]))
    assert table.ranges()["x"] == bounds(rule, floats([1, 2]), symmetric=False)
