"""What a lint says about one artifact: a verdict for each operation, the rules behind it, and fp16 hazards.

A lint is advice from published guidance. It never says where an operation runs; only a device can.
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
        title: what is so.
        verdict: for an operation that the rule fits; ``costly`` is a remark that leaves the verdict as it is.
        confidence: ``documented`` by Core ML's own manuals or sources, ``guidance`` from the vendor for a neighbouring
            stack, observations of the ``community``, or ``measured`` by md-export's own tests.
        source: address of the page that says so, or where md-export's manual does.
        advice: what to do about it.
        helps: rewrites of md-export that do it.
        since, until: first and last system that the rule speaks of; None for no limit.
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
    """One operation.

    Attributes:
        name: of its first output in the artifact.
        kind: of operation, the format's word.
        module: path of the torch module it came from; "" where the artifact does not tell.
        verdict: the least favourable of the rules that fit, ``unknown`` where none speaks of it.
        rules: ids of all that fit, remarks included.
        bytes: it reads and writes, weights left out, the last axis padded as the hardware pads it.
    """

    name: str
    kind: str
    module: str
    verdict: Verdict
    rules: tuple[str, ...]
    bytes: int


class Conditions:
    """Base of the conditions of a rule, all optional fields; all that are given must hold."""

    __pydantic_config__ = _STRICT

    def given(self) -> dict[str, object]:
        """The conditions that are set."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class Limits(Conditions):
    """What the figures of a value must be for a rule to fit.

    Attributes:
        overflows_over: more values overflow.
        largest_from, largest_over, largest_below: its largest magnitude, which is not zero for the last.
        partial_sum_over: its largest sum of magnitudes is larger.
        sums_in_float32: whether the engine forms its sums in float32 in its default precision too.
        loses: its expected error is above the budget in the engine's default precision but not with float32 sums
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
    """What a measured or bounded value may mean. The other fields are those of :class:`Rule`.

    Attributes:
        grade: a ``fault`` fails verification, a ``note`` is advice; of what is bounded, some is ``certain`` wherever
            float16 is computed, some is ``possible``: it depends on order or engine.
        when: what the value must be.
        by_kind: better advice for some kinds of operation.
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
        """What to do about an operation of this kind."""
        return self.by_kind.get(kind, self.advice)


@dataclass(frozen=True)
class Hazard:
    """What real activations do to one float16 value, measured in float32.

    Attributes:
        name, kind, module: as in :class:`OpAdvice`.
        largest: magnitude over all cases.
        smallest: magnitude that is not zero.
        overflows: values that float16 would store as infinity.
        not_finite: values that are infinite or NaN in float32 too, which is not float16's doing.
        flushed: values, not zero, that float16 would store as zero.
        subnormal: values that float16 would store with fewer than eleven significant bits.
        count: values seen in all.
        rules: ids of the hazard rules that fit.
        advice: what to do about the first of them.
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
    """All that is said about one artifact.

    Attributes:
        file: name of the artifact.
        system: whose rules were applied.
        rules_version: of the rule file.
        rules: those that fit something, in the file's order.
        ops: in order of execution.
        layout_bytes: that operations which only move data read and write.
        remarks: ids of rules that fit the artifact as a whole.
        hazard_rules: all of the file.
        hazards: one entry per float16 value, or None where no inputs were given.
        bounds: where no runtime here computes in float16: one entry per op, or None where no inputs were given.
        cases: sets of inputs that ``bounds`` were measured on.
        emulated_db: outputs in float32 over what rounding every value inside to float16 makes of them, sums in
            float32; -999 where that is not finite. It is measured, on all of the artifact at once.
        budget_db: what the rules of ``bounds`` hold their figures against; None where they were not judged.
        engine: that the verdicts speak of.
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
        """Operations with this verdict."""
        return sum(op.verdict == verdict for op in self.ops)

    def rule(self, name: str) -> Rule:
        """The rule of that id."""
        return next(rule for rule in self.rules if rule.id == name)

    def worst(self, limit: int = 10) -> tuple[OpAdvice, ...]:
        """Operations with something to do about them: unlikely before costly, then by bytes."""
        marked = [op for op in self.ops if self._rank(op) < len(_SEVERITY)]
        return tuple(sorted(marked, key=lambda op: (self._rank(op), -op.bytes))[:limit])

    def gravest(self, op: OpAdvice) -> Rule:
        """The least favourable rule that fits ``op``."""
        return min((self.rule(name) for name in op.rules), key=lambda rule: _severity(rule.verdict))

    def _rank(self, op: OpAdvice) -> int:
        return _severity(self.gravest(op).verdict) if op.rules else len(_SEVERITY)


_SEVERITY = ("unlikely", "unknown", "costly")


def _severity(verdict: str) -> int:
    return _SEVERITY.index(verdict) if verdict in _SEVERITY else len(_SEVERITY)
