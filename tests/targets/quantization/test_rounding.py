"""How far a stored weight may be from the checkpoint's: rounding passes, a little more does not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from md_export.parity.weights.rounding import misfit
from md_export.targets.stored import Float32, Grid, Palette, StoredWeight, along

# Below 1e-30 a scale would be subnormal, and steps of it inexact.
ELEMENTS = st.floats(-4, 4, width=32).map(lambda value: value if abs(value) > 1e-30 else 0.0)
WEIGHTS = arrays(np.float32, (6, 8), elements=ELEMENTS)
SAMPLE = np.random.default_rng(0).normal(size=(32, 64)).astype(np.float32)


def text(weight: StoredWeight, wanted: Float32) -> str:
    found = misfit(weight, wanted)
    return found.text if found else ""


def float16(wanted: Float32) -> StoredWeight:
    return StoredWeight("w", "float16", {}, wanted.astype(np.float16).astype(np.float32), half=True)


def int8(wanted: Float32, factor: float = 1.0) -> StoredWeight:
    """Per channel, with scales that are ``factor`` times what they should be."""
    peak = np.abs(wanted).max(axis=1, keepdims=True)
    steps = (np.where(peak > 0, peak, 1) / 127 * factor).astype(np.float32)
    return StoredWeight("w", "int8", {}, np.rint(wanted / steps) * steps, grid=Grid(steps, 127))


@settings(deadline=None)
@given(WEIGHTS)
def test_rounding_passes(wanted: Float32) -> None:
    assert text(StoredWeight("w", "float32", {}, wanted), wanted) == ""
    assert text(float16(wanted), wanted) == ""
    assert text(int8(wanted), wanted) == ""


@pytest.mark.parametrize("weight", [float16(SAMPLE), int8(SAMPLE), StoredWeight("w", "float32", {}, SAMPLE)])
def test_two_units_do_not(weight: StoredWeight) -> None:
    unit = {"float32": 1e-5, "float16": 2**-9, "int8": 0.0}[weight.dtype]
    moved = weight.values.copy()
    place = np.unravel_index(np.abs(moved).argmax(), moved.shape)
    moved[place] += np.abs(moved[place]) * unit + (2 * weight.grid.steps[place[0], 0] if weight.grid else 0)
    changed = StoredWeight("w", weight.dtype, {}, moved, half=weight.half, grid=weight.grid)
    assert text(changed, SAMPLE).startswith("1 of 2048 values are off")


def test_not_finite() -> None:
    values = SAMPLE.copy()
    values[3, 3] = np.nan
    assert text(StoredWeight("w", "float32", {}, values), SAMPLE) == "holds NaN or Inf"


def test_a_coarse_scale_is_a_fault_though_every_value_is_rounded_right() -> None:
    assert text(int8(SAMPLE, factor=1.3), SAMPLE) == "32 of 32 scales are too coarse, by up to 1.3×"


def test_sparse_weights_keep_the_largest() -> None:
    order = np.abs(SAMPLE)
    kept = order > np.percentile(order, 30)
    assert text(StoredWeight("w", "float32", {}, SAMPLE * kept, kept=kept), SAMPLE) == ""
    other = kept.copy()
    other[np.unravel_index(order.argmax(), order.shape)] = False
    assert "drops values that are larger" in text(StoredWeight("w", "float32", {}, SAMPLE * other, kept=other), SAMPLE)


def palette(moved: float) -> StoredWeight:
    """Two tables of two entries, the means of what is below and above zero; one of them moved."""
    halves = np.split(SAMPLE, 2)
    tables = np.array([[part[part < 0].mean(), part[part >= 0].mean()] for part in halves], np.float32)
    tables[1, 1] += moved
    edges = tables.mean(axis=1)
    values = np.concatenate(
        [table[(part > edge).astype(int)] for part, table, edge in zip(halves, tables, edges, strict=True)]
    )
    return StoredWeight("w", "uint1", {}, values, palette=Palette(tables[:, None]))


@pytest.mark.parametrize("moved", [0.3, -0.3])
def test_a_palettes_entries_are_means(moved: float) -> None:
    assert text(palette(0.0), SAMPLE) == ""
    # Every value still has the nearest entry: only the mean tells. Its neighbour's members change too.
    assert "palette entries are not the mean" in text(palette(moved), SAMPLE)


def test_an_index_that_is_not_the_nearest() -> None:
    weight = palette(0.0)
    values = weight.values.copy()
    assert weight.palette is not None
    values[0, 0] = next(entry for entry in weight.palette.tables[0, 0] if entry != values[0, 0])
    assert "1 of 2048 values are off" in text(StoredWeight("w", "uint1", {}, values, palette=weight.palette), SAMPLE)


def test_vectors_lie_along_their_axis() -> None:
    assert along([1, 2, 3], 3, -1).shape == (1, 1, 3)
    assert along(5.0, 2, 0).shape == (1, 1)
