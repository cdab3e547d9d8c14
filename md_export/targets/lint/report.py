"""The lint report of one artifact: a verdict for each operation, the rules behind it, and float16 hazards.

A lint is advice from published guidance. It cannot determine where an operation runs; only a device can.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pydantic import ConfigDict

from md_export.targets.lint.float16_bound import Float16Bound

Verdict = Literal["likely", "unknown", "unlikely"]
Confidence = Literal["documented", "guidance", "community", "measured"]
_STRICT = ConfigDict(extra="forbid", strict=True)


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


_SEVERITY = ("unlikely", "unknown", "costly")


def _severity(verdict: str) -> int:
    return _SEVERITY.index(verdict) if verdict in _SEVERITY else len(_SEVERITY)
