"""Bounds on float16 errors inside an artifact that no runtime here executes in float16: computed, not measured.

Magnitudes are measured in float32 on real inputs; the errors are computed from them and from how sums are formed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Figures:
    """Ratio of an op's output power to the power of the op's float16 error, in dB; 999 without an error.

    Attributes:
        worst: for any order of the terms, with all roundings in the same direction; no error is larger.
        probable: limit that independent roundings exceed by a small factor at most, for any order.
        expected: for independent roundings, over all orders; not a bound.
    """

    worst: float
    probable: float
    expected: float

    def least(self, other: Figures) -> Figures:
        """Return the less favourable value of each figure."""
        return Figures(*(min(pair) for pair in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))


@dataclass(frozen=True)
class Float16Bound:
    """Float16 bounds of one op, over all inputs.

    Attributes:
        name: name of the op's first output in the artifact.
        kind, module: kind of op in the format's terms; path of the torch module, or "".
        largest: largest measured magnitude of its output.
        terms: number of terms in the sum for one output; 0 for a kind of op without sums, which has no figures.
        partial_sum: largest sum of the magnitudes of an output's terms: no partial sum in any order is larger.
        default: figures in the precision that the GPU engine uses unless an app requests another.
        float32_sums: figures with sums in float32, operands and results still in float16.
        float16_sums: figures with every sum in float16, also sums that the engine forms in float32 in any precision.
        rules: ids of the hazard rules that apply, the most severe first.
        advice: advice of the first of these rules.
    """

    name: str
    kind: str
    module: str
    largest: float
    terms: int = 0
    partial_sum: float = 0.0
    default: Figures | None = None
    float32_sums: Figures | None = None
    float16_sums: Figures | None = None
    rules: tuple[str, ...] = ()
    advice: str = ""

    @property
    def sums_in_float32(self) -> bool:
        """Whether the engine forms this op's sums in float32 in its default precision too."""
        return self.default == self.float32_sums


def worst_op(bounds: Sequence[Float16Bound], figures: Callable[[Float16Bound], Figures | None]) -> Float16Bound | None:
    """Return the op with the lowest expected figure in a precision; None if no op has a figure."""
    known = [(found.expected, bound) for bound in bounds if (found := figures(bound)) is not None]
    return min(known, key=lambda item: item[0])[1] if known else None
