"""The roofline: known operations, its bounds, and that more work never takes less time."""

from __future__ import annotations

import dataclasses
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from md_export.diagnose.estimate.devices import Constants, Device, UnitClass, knowledge
from md_export.diagnose.estimate.roofline import changes, floor_of, grouped, pattern, seconds_of
from md_export.errors import UsageError
from md_export.targets.operations import Node, OpCost, Value, Work, costs_of, einsum_macs, product_macs

UNIT: Final = UnitClass("a unit", ("onnx",), ("spill",), "float16", "none")
# 1 T operations a second in float16, 2 T in int8; 1 GB a second.
DEVICE: Final = Device("d", "a device", UNIT, {"float16": 1e12, "int8": 2e12}, "none", 1e9, "none")
FULL: Final = Constants(convolution=1.0, matrix_product=1.0, spill=1.0, launch_s=0.0)


def op(work: Work = "convolution", macs: int = 0, **fields: object) -> OpCost:
    plain = OpCost("conv", "module", work, macs, "float16", 0, 0, 0, 0)
    return dataclasses.replace(plain, **fields)  # type: ignore[arg-type]


def seconds(one: OpCost, constants: Constants = FULL) -> float:
    return seconds_of(one, DEVICE, constants)


def test_an_operation_is_bound_by_arithmetic_or_by_memory() -> None:
    assert seconds(op(macs=10**9)) == pytest.approx(2e-3)
    assert seconds(op(macs=10**9, arithmetic="int8")) == pytest.approx(1e-3)
    assert seconds(op(weight_bytes=10**6, read_bytes=10**6, written_bytes=10**6)) == pytest.approx(3e-3)
    assert seconds(op(macs=10**9, weight_bytes=10**6)) == pytest.approx(2e-3), "they overlap"
    assert seconds(op("view", read_bytes=10**9)) == 0.0


def test_constants_stretch_what_they_are_for() -> None:
    half = Constants(convolution=0.5, matrix_product=0.25, spill=0.1, launch_s=1e-3)
    assert seconds(op(macs=10**9), half) == pytest.approx(4e-3 + 1e-3)
    assert seconds(op("matrix product", macs=10**9), half) == pytest.approx(8e-3 + 1e-3)
    assert seconds(op("other", weight_bytes=10**6, read_bytes=10**6), half) == pytest.approx(1.1e-3 + 1e-3)


def test_float32_is_computed_in_float16_or_leaves_the_unit() -> None:
    single = op(macs=10**9, arithmetic="float32", read_bytes=4 * 10**6)
    assert seconds(single) == pytest.approx(2e-3)
    assert seconds(dataclasses.replace(single, macs=0)) == pytest.approx(2e-3), "values of half the bytes"
    leaving = dataclasses.replace(DEVICE, unit=dataclasses.replace(UNIT, float32="leaves"))
    with pytest.raises(UsageError, match=r"float32.*only the rate for float16, int8"):
        seconds_of(single, leaving, FULL)
    elsewhere = dataclasses.replace(leaving, peak={**DEVICE.peak, "float32": 1e11})
    assert seconds_of(single, elsewhere, FULL) == pytest.approx(20e-3)


sizes = st.integers(0, 10**9)
shares = st.floats(0.05, 1.0)
constants = st.builds(Constants, convolution=shares, matrix_product=shares, spill=shares, launch_s=st.floats(0.0, 1e-3))
ops = st.builds(
    op,
    st.sampled_from(("convolution", "matrix product", "layout move", "other")),
    sizes,
    weight_bytes=sizes,
    read_bytes=sizes,
    written_bytes=sizes,
    arithmetic=st.sampled_from(("float16", "int8")),
)


@given(ops, constants, st.sampled_from(("macs", "weight_bytes", "read_bytes", "written_bytes")), sizes)
def test_more_work_never_takes_less_time(one: OpCost, by_what: Constants, field: str, more: int) -> None:
    larger = dataclasses.replace(one, **{field: getattr(one, field) + more})
    assert seconds(larger, by_what) >= seconds(one, by_what)


@given(st.lists(ops, max_size=5), constants)
def test_no_estimate_is_below_the_floor(several: list[OpCost], by_what: Constants) -> None:
    multiplied = [
        one if one.work in ("convolution", "matrix product") else dataclasses.replace(one, macs=0) for one in several
    ]
    whole = 1e3 * sum(seconds(one, by_what) for one in multiplied)
    assert floor_of(multiplied, DEVICE).ms <= whole * (1 + 1e-9)


def test_the_floor_is_weights_once_or_all_multiply_adds() -> None:
    floor = floor_of([op(macs=10**9), op(weight_bytes=3 * 10**6, read_bytes=10**9)], DEVICE)
    assert (floor.arithmetic_ms, floor.memory_ms, floor.ms) == pytest.approx((2.0, 3.0, 3.0))
    shared = floor_of([op(weight_bytes=3 * 10**6), op(weight_bytes=3 * 10**6)], DEVICE, stored=3 * 10**6)
    assert shared.ms == pytest.approx(3.0)


# Ranking


def test_groups_are_sorted_by_time() -> None:
    several = [op(macs=10**9), op("other", read_bytes=5 * 10**6, kind="add"), op(macs=10**9)]
    first, second = grouped(lambda one: one.kind, several, DEVICE, FULL)
    assert [(place.name, place.ops) for place in (first, second)] == [("add", 1), ("conv", 2)]
    assert (first.ms, second.ms) == pytest.approx((5.0, 4.0))


def test_patterns_of_modules() -> None:
    assert pattern("encoder.layers.11.mlp.fc1") == "encoder.layers.*.mlp.fc1"
    assert pattern("net.0") == "net.*" and pattern("conv1") == "conv1"


def test_changes_are_what_a_second_estimate_saves() -> None:
    heavy = op("matrix product", macs=1, weights=10**6, weight_bytes=4 * 10**6)
    move = op("layout move", read_bytes=10**6, written_bytes=10**6)
    found = {change.what.partition(":")[0]: change for change in changes([heavy, move], DEVICE, FULL)}
    assert found["layout moves"].saves_ms == pytest.approx(2.0)
    assert found["weights wider than 8 bits"].saves_ms == pytest.approx(3.0)
    assert found["weights wider than 4 bits"].saves_ms == pytest.approx(3.5)
    assert "float32 islands" not in found


def test_nothing_is_said_of_what_saves_nothing() -> None:
    small = op("matrix product", macs=10**9, weights=10, weight_bytes=5, arithmetic="int8")
    assert changes([small], DEVICE, FULL) == ()


def test_a_float32_island_is_named_where_it_leaves_the_unit() -> None:
    phone = knowledge().devices["iphone15pro"]
    island = op("matrix product", macs=10**9, arithmetic="float32", weights=1, weight_bytes=4)
    (change,) = [one for one in changes([island], phone, FULL) if one.what.startswith("float32 islands")]
    before = 1e3 * seconds_of(island, phone, FULL)
    after = 1e3 * seconds_of(dataclasses.replace(island, arithmetic="float16"), phone, FULL)
    assert change.saves_ms == pytest.approx(before - after)


# From values and nodes


def test_a_constant_is_seen_through_what_decodes_it() -> None:
    values = {
        "stored": Value("stored", (4, 8), "uint4", 16),
        "scale": Value("scale", (4,), "float16", 8),
        "w": Value("w", (4, 8), "float16"),
        "x": Value("x", (2, 8), "float16"),
        "y": Value("y", (2, 4), "float16"),
    }
    nodes = [
        Node("decode", "other", ("stored", "scale"), ("w",), passing=True),
        Node("linear", "matrix product", ("x", "w"), ("y",), macs=64, module="m"),
    ]
    (linear,) = costs_of(nodes, values)
    assert linear == OpCost("linear", "m", "matrix product", 64, "float16", 32, 24, 32, 16)


def test_a_pair_that_is_not_there_changes_nothing() -> None:
    """The negative control of the int8 pairs: without them, values are of the graph's own type."""
    values = {name: Value(name, (8,), "float32") for name in "xyz"} | {"q": Value("q", (8,), "uint8")}
    plain = costs_of([Node("a", "other", ("x",), ("y",)), Node("b", "other", ("y",), ("z",))], values)
    assert [one.activation_bytes for one in plain] == [64, 64]
    paired = [
        Node("a", "other", ("x",), ("y",)),
        Node("q", "other", ("y",), ("q",), passing=True),
        Node("b", "other", ("q",), ("z",)),
    ]
    assert [(one.arithmetic, one.activation_bytes) for one in costs_of(paired, values)] == [
        ("float32", 40),
        ("int8", 40),
    ]


def test_products() -> None:
    assert product_macs((2, 3, 4), (2, 3, 5)) == 2 * 3 * 4 * 5
    assert product_macs((2, 4, 3), (2, 3, 5)) == 2 * 3 * 4 * 5, "transposed"
    assert product_macs((4,), (5,)) == 20
    assert einsum_macs("bchq, bkhc -> bkhq", [(1, 6, 2, 7), (1, 5, 2, 6)]) == 6 * 2 * 7 * 5
