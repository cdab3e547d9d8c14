"""What float16 arithmetic may do inside an artifact that no runtime here executes in float16: bounded, not measured.

Magnitudes are measured in float32 on real inputs; errors follow from them and from how the sums are formed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

LARGEST: Final = 65504.0
SMALLEST_NORMAL: Final = 2.0**-14
# Half a step above the largest number: rounded to nearest it becomes infinity.
_OVERFLOWS_AT: Final = 65520.0


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
        rules: ids of :data:`RULES` that fit, the gravest first.
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


@dataclass(frozen=True)
class BoundRule:
    """What a figure may mean.

    Attributes:
        id, title, advice: short name; what may happen; what to do about it.
        certain: it happens in float16 wherever it is computed; else it depends on order or engine.
        fits: of a bound and the budget in dB.
        by_kind: better advice for some kinds of op.
    """

    id: str
    title: str
    advice: str
    certain: bool
    fits: Callable[[Float16Bound, float], bool]
    by_kind: Mapping[str, str] = field(default_factory=dict)

    def advice_for(self, kind: str) -> str:
        """What to do about an op of this kind."""
        return self.by_kind.get(kind, self.advice)


def _below(figures: Figures | None, budget_db: float) -> bool:
    return figures is not None and figures.expected < budget_db


_FLOAT32_SUMS: Final = "ask for float32 sums (FP16_WITH_FP32_ACCUM) or for float32 (FP32) in the app"
_ANGLE: Final = "a large angle: rewrite fold_timestep where the model takes one step; or ask for float32 (FP32)"
RULES: Final = (
    BoundRule(
        "overflow",
        "a value that float16 stores as infinity",
        "scale down what makes it by a power of two, and up what reads it; or ask for float32 (FP32) in the app",
        True,
        lambda bound, _: bound.largest >= _OVERFLOWS_AT,
        {"MUL": "a square in a norm: multiply the norm's input by 2^-k and its eps by 4^-k; or ask for float32 (FP32)"},
    ),
    BoundRule(
        "sum-overflow",
        "terms whose magnitudes sum up to more than 65504: in some order a float16 sum passes it",
        f"{_FLOAT32_SUMS}; or scale the weights down by a power of two and what follows up",
        False,
        lambda bound, _: bound.partial_sum > LARGEST and not bound.sums_in_float32,
    ),
    BoundRule(
        "long-sum",
        "a sum or mean that passes 65504 on an engine that adds in float16; this one adds in float32",
        "take the mean over one axis at a time: rewrite staged_group_norm",
        False,
        lambda bound, _: bound.partial_sum > LARGEST and bound.sums_in_float32 and bound.terms > 0,
    ),
    BoundRule(
        "loses-by-default",
        "expected error above the budget in the engine's default precision, but not with float32 sums",
        _FLOAT32_SUMS,
        False,
        lambda bound, budget_db: _below(bound.default, budget_db) and not _below(bound.float32_sums, budget_db),
    ),
    BoundRule(
        "loses",
        "expected error above the budget with float32 sums too: its operands do not fit float16",
        "ask for float32 (FP32) in the app",
        True,
        lambda bound, budget_db: _below(bound.float32_sums, budget_db),
        {
            "SOFTMAX": "its logits are large: above 64 float16 has steps of 1/16 and more; ask for float32 (FP32), or "
            "train with smaller ones",
            "SIN": _ANGLE,
            "COS": _ANGLE,
            "MEAN": "far smaller than what it is the mean of: harmless in a norm, where only the spread counts",
            "SUB": "its operands nearly cancel; ask for float32 (FP32) in the app",
        },
    ),
    BoundRule(
        "below-normal",
        "all values are below 6.1e-5: few digits are left, and a GPU that flushes subnormal numbers gives zero",
        "scale what makes it up by a power of two and what reads it down",
        False,
        lambda bound, _: 0 < bound.largest < SMALLEST_NORMAL,
    ),
)


def judged(bounds: Sequence[Float16Bound], budget_db: float) -> tuple[Float16Bound, ...]:
    """With the rules that fit each."""
    return tuple(_judged(bound, [rule for rule in RULES if rule.fits(bound, budget_db)]) for bound in bounds)


def _judged(bound: Float16Bound, rules: Sequence[BoundRule]) -> Float16Bound:
    advice = rules[0].advice_for(bound.kind) if rules else ""
    return dataclasses.replace(bound, rules=tuple(rule.id for rule in rules), advice=advice)


def worst_op(bounds: Sequence[Float16Bound], figures: Callable[[Float16Bound], Figures | None]) -> Float16Bound | None:
    """The op with the least expected figure of a precision; None where no op has one."""
    known = [(found.expected, bound) for bound in bounds if (found := figures(bound)) is not None]
    return min(known, key=lambda item: item[0])[1] if known else None
