"""Palettes: as good as scikit-learn's k-means, the same every time, and exact where they can be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from md_export.targets.quantization.levels import palettize


def squared_error(weight: np.ndarray, entries: int) -> float:
    table, indices = palettize(weight, entries)
    return float(((table.astype(np.float64)[indices] - weight.reshape(-1)) ** 2).sum())


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("kind", ["normal", "laplace"])
def test_as_good_as_scikit_learn(kind: str, bits: int) -> None:
    from sklearn.cluster import KMeans

    weight = (0.05 * getattr(np.random.default_rng(0), kind)(size=50 * 2**bits + 2000)).astype(np.float32)
    other = KMeans(2**bits, n_init=1, random_state=0).fit(weight.reshape(-1, 1))
    # Two local optima: 0.3 dB of each other.
    assert squared_error(weight, 2**bits) <= 1.07 * other.inertia_


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_few_values_are_exact(dtype: type[np.floating]) -> None:
    weight = np.array([[0.5, -1.25], [3.0, 0.5]], dtype)
    table, indices = palettize(weight, 4)
    assert table.dtype == dtype
    assert np.array_equal(table[indices].reshape(2, 2), weight)


def test_zeros_are_left_out_where_asked() -> None:
    weight = np.array([0, 0, 0, 0, 1, 2, 3, 4], np.float32)
    table, indices = palettize(weight, 4, skip_zeros=True)
    assert table.tolist() == [1, 2, 3, 4]
    assert table[indices][4:].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("weight", [[np.inf, 1], [np.nan, 1]])
def test_what_is_not_finite_is_refused(weight: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        palettize(np.array(weight, np.float32), 4)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-1000, 1000, width=16), min_size=1, max_size=80), st.sampled_from([4, 8, 16]))
def test_every_value_gets_its_nearest_entry(values: list[float], entries: int) -> None:
    weight = np.array(values, np.float16)
    table, indices = palettize(weight, entries)
    wide = table.astype(np.float64)
    assert len(table) == entries
    nearest = np.abs(wide[:, None] - weight).min(axis=0)
    assert np.array_equal(np.abs(wide[indices] - weight), nearest)
