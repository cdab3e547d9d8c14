"""The lint report of one artifact: a verdict for each operation, the rules behind it, and float16 hazards.

A lint is advice from published guidance. It cannot determine where an operation runs; only a device can.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from pydantic import ConfigDict

from md_export.targets.lint.faults import KnownFaults

Verdict = Literal["likely", "unknown", "unlikely"]
Confidence = Literal["documented", "guidance", "community", "measured"]
_STRICT = ConfigDict(extra="forbid", strict=True)
_SEVERITY = ("unlikely", "unknown", "costly")


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


@dataclass(frozen=True)
class Rule:
    """One published fact.

    Attributes:
        id: short name, unique in its file.
        title: the fact in one sentence.
        verdict: verdict for an operation that the rule applies to; ``costly`` is a remark and changes no verdict.
        confidence: ``documented`` by Core ML's own manuals or sources, ``guidance`` from the vendor for a neighbouring
            stack, observations of the ``community``, or ``measured`` by md-export's own tests.
        source: address of the page that states the fact, or its place in md-export's manual.
        advice: recommended change.
        helps: rewrites of md-export that make this change.
        since, until: first and last system that the rule applies to; None for no limit.
    """

    __pydantic_config__ = _STRICT

    id: str
    title: str
    verdict: Literal["likely", "unknown", "unlikely", "costly"]
    confidence: Confidence
    source: str
    advice: str
    helps: tuple[str, ...] = ()
    since: str | None = None
    until: str | None = None


@dataclass(frozen=True)
class OpAdvice:
    """Lint result of one operation.

    Attributes:
        name: name of the operation's first output in the artifact.
        kind: kind of operation in the format's terms.
        module: path of the torch module it came from; "" if the artifact does not record it.
        verdict: least favourable verdict of the rules that apply; ``unknown`` if none covers the operation.
        rules: ids of all rules that apply, including remarks.
        bytes: bytes that it reads and writes without weights, with the last axis padded as on the hardware.
    """

    name: str
    kind: str
    module: str
    verdict: Verdict
    rules: tuple[str, ...]
    bytes: int


class Conditions:
    """Base class for conditions of a rule; all fields are optional, and all that are given must hold."""

    __pydantic_config__ = _STRICT

    def given(self) -> dict[str, object]:
        """Return the conditions that are set."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class Limits(Conditions):
    """Conditions on the figures of a value; a rule applies if all that are given hold.

    Attributes:
        overflows_over: more values than this overflow.
        largest_from, largest_over, largest_below: limits of its largest magnitude; for the last it must not be zero.
        partial_sum_over: its largest sum of magnitudes is above this.
        sums_in_float32: whether the engine also forms its sums in float32 in the default precision.
        loses: its expected error exceeds the budget in the engine's default precision but not with float32 sums
            (``by default``), or with float32 sums too (``always``).
    """

    overflows_over: int | None = None
    largest_from: float | None = None
    largest_over: float | None = None
    largest_below: float | None = None
    partial_sum_over: float | None = None
    sums_in_float32: bool | None = None
    loses: Literal["by default", "always"] | None = None


@dataclass(frozen=True)
class HazardRule:
    """Rule about a measured or bounded value. The other fields are those of :class:`Rule`.

    Attributes:
        grade: a ``fault`` fails verification, a ``note`` is advice. Findings about bounds are ``certain`` if they apply
            wherever float16 is computed, and ``possible`` if they depend on the order of sums or on the engine.
        when: conditions on the value.
        by_kind: more specific advice for some kinds of operation.
    """

    __pydantic_config__ = _STRICT

    id: str
    title: str
    grade: Literal["fault", "note", "certain", "possible"]
    confidence: Confidence
    source: str
    advice: str
    when: Limits = field(default_factory=Limits)
    by_kind: Mapping[str, str] = field(default_factory=dict)

    def advice_for(self, kind: str) -> str:
        """Return the advice for an operation of this kind."""
        return self.by_kind.get(kind, self.advice)


@dataclass(frozen=True)
class Hazard:
    """Effect of float16 on one value, measured with real activations in float32.

    Attributes:
        name, kind, module: as in :class:`OpAdvice`.
        largest: largest magnitude over all cases.
        smallest: smallest magnitude that is not zero.
        overflows: number of values that float16 would store as infinity.
        not_finite: number of values that are infinite or NaN in float32 too, so float16 is not the cause.
        flushed: number of nonzero values that float16 would store as zero.
        subnormal: number of values that float16 would store with fewer than eleven significant bits.
        count: number of all values.
        rules: ids of the hazard rules that apply.
        advice: advice of the first of these rules.
    """

    name: str
    kind: str
    module: str
    largest: float
    smallest: float
    overflows: int
    not_finite: int
    flushed: int
    subnormal: int
    count: int
    rules: tuple[str, ...] = ()
    advice: str = ""

    def joined(self, other: Hazard) -> Hazard:
        """The figures of this and further cases of the value."""
        counted = ("overflows", "not_finite", "flushed", "subnormal", "count")
        return replace(
            self,
            largest=max(self.largest, other.largest),
            smallest=min(self.smallest, other.smallest),
            **{name: getattr(self, name) + getattr(other, name) for name in counted},
        )


@dataclass(frozen=True)
class LintReport:
    """All lint results of one artifact.

    Attributes:
        file: name of the artifact.
        system: system whose rules were applied.
        rules_version: version of the rule file.
        rules: rules that apply to something, in the file's order.
        ops: operations in order of execution.
        layout_bytes: bytes read and written by operations that only move data.
        remarks: ids of rules that apply to the artifact as a whole.
        hazard_rules: all hazard rules of the file.
        hazards: one entry per float16 value; None if no inputs were given.
        bounds: one entry per op if no runtime here computes in float16; None if no inputs were given.
        cases: number of input sets that ``bounds`` were measured on.
        emulated_db: SNR in dB of the outputs with every inner value rounded to float16 and sums in float32, against
            float32 outputs; -999 if not finite. Measured on the whole artifact at once.
        budget_db: budget in dB for the rules of ``bounds``; None if the bounds were not compared with one.
        engine: engine that the verdicts are about.
        known: what known faults of published runtimes mean for the artifact.
    """

    file: str
    system: str
    rules_version: int
    rules: tuple[Rule, ...]
    ops: tuple[OpAdvice, ...]
    layout_bytes: int
    remarks: tuple[str, ...]
    hazard_rules: tuple[HazardRule, ...]
    hazards: tuple[Hazard, ...] | None = None
    bounds: tuple[Float16Bound, ...] | None = None
    cases: int = 0
    emulated_db: float | None = None
    budget_db: float | None = None
    engine: str = "Neural Engine"
    known: KnownFaults | None = None

    def count(self, verdict: Verdict) -> int:
        """Return the number of operations with this verdict."""
        return sum(op.verdict == verdict for op in self.ops)

    def rule(self, name: str) -> Rule:
        """Return the rule with this id."""
        return next(rule for rule in self.rules if rule.id == name)

    def worst(self, limit: int = 10) -> tuple[OpAdvice, ...]:
        """Return the operations that need a change: ``unlikely`` before ``costly``, then by bytes."""
        marked = [op for op in self.ops if self._rank(op) < len(_SEVERITY)]
        return tuple(sorted(marked, key=lambda op: (self._rank(op), -op.bytes))[:limit])

    def gravest(self, op: OpAdvice) -> Rule:
        """Return the least favourable rule that applies to ``op``."""
        return min((self.rule(name) for name in op.rules), key=lambda rule: _severity(rule.verdict))

    def _rank(self, op: OpAdvice) -> int:
        return _severity(self.gravest(op).verdict) if op.rules else len(_SEVERITY)


def _severity(verdict: str) -> int:
    return _SEVERITY.index(verdict) if verdict in _SEVERITY else len(_SEVERITY)
