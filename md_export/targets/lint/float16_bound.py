"""What float16 arithmetic may do inside an artifact that no runtime here executes in float16: bounded, not measured.

Magnitudes are measured in float32 on real inputs; errors follow from them and from how the sums are formed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Figures:
    """Power of what an op gives over that of its own float16 error, in dB; 999 where there is no error.

    Attributes:
        worst: in any order of the terms and with every rounding in the same direction; no error is larger.
        probable: what independent roundings stay within but for a small factor, in any order.
        expected: of independent roundings, over all orders. No bound.
    """

    worst: float
    probable: float
    expected: float

    def least(self, other: Figures) -> Figures:
        """The less favourable of each."""
        return Figures(*(min(pair) for pair in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))


@dataclass(frozen=True)
class Float16Bound:
    """One op, over all inputs.

    Attributes:
        name: of its first output in the artifact.
        kind, module: of op, the format's word; path of the torch module, or "".
        largest: magnitude of what it gives, measured.
        terms: that it adds up for one output; 0 for a kind of op that adds nothing up, which has no figures.
        partial_sum: largest sum of the magnitudes of an output's terms: no partial sum in any order is larger.
        default: in the precision that the GPU engine takes where an app asks for none.
        float32_sums: with sums in float32, operands and results still in float16.
        float16_sums: with every sum in float16, also those that the engine forms in float32 in any precision.
        rules: ids of the hazard rules that fit, the gravest first.
        advice: what to do about the first of them.
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
    """The op with the least expected figure of a precision; None where no op has one."""
    known = [(found.expected, bound) for bound in bounds if (found := figures(bound)) is not None]
    return min(known, key=lambda item: item[0])[1] if known else None
