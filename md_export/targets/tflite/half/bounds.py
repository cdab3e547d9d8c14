"""From the terms of a sum to the error that float16 makes in it: bounded, and expected.

Notation: u = 2^-11, the relative error of one rounding to float16; n terms t_i with sum y; A = sum |t_i|, Q = sum t_i².

    every operand rounded once, k of them in a term:       k·u·A at most           k·u²/3·Q in the mean square
    n roundings on the way of a term to its sum:           n·u·A at most, in any order and with no limit on n
        (Jeannerod and Rump, "Improved error bounds for inner products in floating-point arithmetic", 2013);
                                                           √n·u·A is the size of the probabilistic bound
        (Higham and Mary, "A new approach to probabilistic rounding error analysis", 2019), without its constant;
                                                           u²/3·((n+1)/6·Q + (n+1)/3·y²) in the mean square
        of independent roundings, over all orders of the terms: the mean of s_j² is
        j(n-j)/(n(n-1))·Q + j(j-1)/(n(n-1))·y² for the partial sum s_j of j terms
    the sum stored:                                        u·|y| at most           u²/3·y² in the mean square

A number below 2^-14 is rounded by up to 2^-25 whatever its size; the bounds have that error for every term too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

import numpy as np
import torch
from torch import Tensor

from md_export.spec.tensors import Array, Arrays
from md_export.targets.lint.float16_bound import Figures, Float16Bound
from md_export.targets.lint.op import Op
from md_export.targets.tflite.half.activations import OpValues, Recorder
from md_export.targets.tflite.half.terms import TINY, UNIT, Terms, terms_of

# ML Drift adds so many products in float16 before it goes on in float32.
BLOCK: Final = 4
NO_ERROR_DB: Final = 999.0

Precision = Literal["float16_sums", "float32_sums"]
# Sums that an older engine or another maker's may form in float16; the default precision is ML Drift's F16.
_PRECISIONS: Final[tuple[Precision, Precision]] = ("float16_sums", "float32_sums")


@dataclass(frozen=True)
class Errors:
    """Errors of each output of one op, float64.

    Attributes:
        worst: no order of the terms and no luck with the roundings gives more.
        probable: what the probabilistic bound scales with.
        square: expected square of the error.
    """

    worst: Tensor
    probable: Tensor
    square: Tensor


def errors_of(terms: Terms, precision: Precision) -> Errors:
    """Error in float16 of the sums of one op.

    Args:
        precision: ``float16_sums``: every product and partial sum is a float16 number. ``float32_sums``: products are
            added in float16 by fours and those sums in float32; sums, means and softmax are float32 inside. Operands
            and results are float16 numbers in both.
    """
    inside = terms.count if precision == "float16_sums" else _inside(terms)
    # A product is rounded as well as added; the last sum is the result where all of it is float16.
    steps = (inside if terms.operands == 2 else inside - 1) + (terms.extra if inside > 1 else 0)
    stored = inside < terms.count or terms.divided > 1 or steps == 0
    values = terms.values.double().abs()
    tiny = TINY * terms.count * (1 + terms.operands * terms.scale) / terms.divided + TINY

    def bound(growth: float) -> Tensor:
        error = (1 + growth * UNIT) * terms.rounded + growth * UNIT * terms.sizes.double() + tiny
        return error + stored * UNIT * (values + error)

    square = terms.rounded_squares + stored * values.square() + _in_steps(terms, inside)
    floor = TINY**2 / 3 * (terms.count * (1 + terms.operands * terms.scale**2) / terms.divided**2 + 1)
    return Errors(bound(steps), bound(math.sqrt(steps)), UNIT**2 / 3 * square + floor)


def _inside(terms: Terms) -> int:
    """Terms that meet in float16 before float32 takes over; 1 for none."""
    return 1 if terms.in_float32 or terms.operands == 1 else min(BLOCK, terms.count)


def _in_steps(terms: Terms, inside: int) -> Tensor:
    """Mean square, over u²/3, of what products and additions in float16 lose, by blocks of ``inside`` terms."""
    squares, values = terms.squares.double(), terms.values.double()
    product = squares if terms.operands == 2 else torch.zeros_like(squares)
    if inside == 1:
        return product
    share = (inside - 1) / (terms.count - 1)
    blocks = squares + share * (values.square() - squares).clamp(min=0)
    return product + (inside + 1) / 6 * squares + (inside + 1) / 3 * blocks


def decibels(values: Tensor, error_square: Tensor) -> float:
    """Power of ``values`` over that of the error; of zeros, which have none, 999."""
    signal, noise = float(values.double().square().sum()), float(error_square.sum())
    if signal == 0:
        return NO_ERROR_DB
    return 10 * math.log10(signal / noise)


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
    """Return the bound of one op in one run."""
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


def _plain(op: Op, output: Array) -> Float16Bound:
    largest = float(np.abs(output).max(initial=0.0))
    return Float16Bound(op.name, op.kind, op.module, largest)


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
