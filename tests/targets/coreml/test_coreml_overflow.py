"""The lean check of constants before float16 says what coremltools' own says, in a hundredth of the memory."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from coremltools.converters.mil.mil import Builder
from coremltools.converters.mil.mil.passes.defs.quantization import FP16ComputePrecision

from md_export.targets.coreml.lower import lean_conversion, overflows

OWN = FP16ComputePrecision.fp16_overflow
SIZE = (1 << 20) + 7


def operation(values: np.ndarray) -> Any:
    """An addition of a constant."""

    @Builder.program(input_specs=[Builder.TensorSpec(shape=(1,))])  # type: ignore[untyped-decorator]
    def program(x: Any) -> Any:
        return Builder.add(x=x, y=values, name="sum")

    return next(op for op in program.functions["main"].operations if op.name == "sum")


@pytest.mark.parametrize("value", [0.0, 65504.0, 65505.0, -7e4, 9e37, 1.1e38, -1.1e38, np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("place", [0, SIZE - 1])
def test_it_says_what_coremltools_says(value: float, place: int) -> None:
    values = np.ones(SIZE, np.float32)
    values[place] = value
    op = operation(values)
    assert overflows(op) == OWN(op)


def test_integers_and_scalars() -> None:
    for values, expected in ((np.float32(1e5), True), (np.float32(1.0), False)):
        assert overflows(operation(np.asarray([values]))) is expected


def peak(check: Any, op: Any) -> int:
    tracemalloc.start()
    check(op)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most


def test_memory_does_not_grow_with_the_weight() -> None:
    op = operation(np.ones((64, 16, 32, 64, 4), np.float32).reshape(1024, 8192))
    assert peak(OWN, op) > 100e6
    assert peak(overflows, op) < 10e6


def test_it_is_there_for_the_duration_only() -> None:
    with lean_conversion():
        assert FP16ComputePrecision.fp16_overflow is overflows
    assert FP16ComputePrecision.fp16_overflow is OWN
