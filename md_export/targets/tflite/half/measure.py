"""Float16 bounds of every op of a file, over all inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from md_export.spec.tensors import Array, Arrays
from md_export.targets.bounds import Figures, Float16Bound
from md_export.targets.tflite.gpu.graph import GraphOp
from md_export.targets.tflite.half.activations import OpValues, Recorder
from md_export.targets.tflite.half.bounds import Errors, Precision, decibels, errors_of
from md_export.targets.tflite.half.sums import Terms
from md_export.targets.tflite.half.terms import terms_of

# Sums that an older engine or another maker's may form in float16; the default precision is ML Drift's F16.
_PRECISIONS: Final[tuple[Precision, Precision]] = ("float16_sums", "float32_sums")


def measure(path: Path, batches: Sequence[Arrays]) -> tuple[Float16Bound, ...]:
    """One entry per op that gives floating-point values, in order of execution; the least favourable case of each.

    Raises:
        RuntimeFault: the file does not run on these inputs.
    """
    recorder = Recorder(path)
    found: dict[str, Float16Bound] = {}
    for batch in batches:
        for values in recorder.run(batch):
            if values.output.dtype.kind == "f":
                bound = bound_of(values)
                found[bound.name] = _least(found[bound.name], bound) if bound.name in found else bound
    return tuple(found.values())


def bound_of(values: OpValues) -> Float16Bound:
    """Of one op in one run."""
    op, terms = values.op, terms_of(values)
    if terms is None:
        return _plain(op, values.output)
    float16, float32 = (_figures(terms, errors_of(terms, precision)) for precision in _PRECISIONS)
    return replace(
        _plain(op, values.output),
        terms=terms.count,
        partial_sum=float(terms.sizes.max()) * terms.divided,
        default=float32 if terms.in_float32 else float16,
        float32_sums=float32,
        float16_sums=float16,
    )


def _plain(op: GraphOp, output: Array) -> Float16Bound:
    largest = float(np.abs(output).max(initial=0.0))
    return Float16Bound(op.outputs[0], op.operator, op.module, largest)


def _figures(terms: Terms, errors: Errors) -> Figures:
    squares = (errors.worst.square(), errors.probable.square(), errors.square)
    return Figures(*(decibels(terms.values, square) for square in squares))


def _least(one: Float16Bound, other: Float16Bound) -> Float16Bound:
    def least(left: Figures | None, right: Figures | None) -> Figures | None:
        return left.least(right) if left and right else None

    return replace(
        one,
        largest=max(one.largest, other.largest),
        partial_sum=max(one.partial_sum, other.partial_sum),
        default=least(one.default, other.default),
        float32_sums=least(one.float32_sums, other.float32_sums),
        float16_sums=least(one.float16_sums, other.float16_sums),
    )
