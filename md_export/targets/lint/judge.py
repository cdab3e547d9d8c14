"""The rule engine: a target's facts and rules in, a report out; and rules on measured values."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Final, TypeVar

from md_export.targets.lint.conditions import exceeds, fits
from md_export.targets.lint.float16_bound import Float16Bound
from md_export.targets.lint.op import Facts, Op
from md_export.targets.lint.report import Hazard, HazardRule, LintReport, OpAdvice, Verdict
from md_export.targets.lint.rules import EngineRule, RuleFile

# The first that a rule gives is the operation's verdict.
_ORDER: Final[tuple[Verdict, ...]] = ("unlikely", "unknown", "likely")
_Measured = TypeVar("_Measured", Hazard, Float16Bound)


def judge(file: str, facts: Facts, rules: RuleFile, system: str) -> LintReport:
    """Judge each operation of an artifact, and the artifact as a whole, by the rules for a system.

    Args:
        file: name of the artifact.
        facts: of the artifact.
        rules: of its target.
        system: one of ``rules.systems``.
    """
    active = rules.rules_for(system)
    on_ops = [rule for rule in active if rule.when.weight_bytes_over is None]
    ops = tuple(_advice(op, on_ops) for op in facts.ops)
    remarks = tuple(
        rule.id for rule in active if rule not in on_ops and facts.weight_bytes > (rule.when.weight_bytes_over or 0)
    )
    fitting = {name for op in ops for name in op.rules} | set(remarks)
    return LintReport(
        file=file,
        system=system,
        rules_version=rules.version,
        rules=tuple(rule.bare() for rule in active if rule.id in fitting),
        ops=ops,
        layout_bytes=sum(op.bytes for op in ops if op.kind in rules.layout),
        remarks=remarks,
        hazard_rules=rules.hazard,
        engine=rules.engine,
    )


def _advice(op: Op, rules: Sequence[EngineRule]) -> OpAdvice:
    fitting = [rule for rule in rules if fits(op, rule.when)]
    verdicts = {rule.verdict for rule in fitting}
    verdict: Verdict = next((item for item in _ORDER if item in verdicts), "unknown")
    return OpAdvice(op.name, op.kind, op.module, verdict, tuple(rule.id for rule in fitting), op.bytes)


def judged(
    values: Sequence[_Measured], rules: Sequence[HazardRule], budget_db: float = -math.inf
) -> tuple[_Measured, ...]:
    """Add to each measured value the rules that fit it, and what to do about the first.

    Args:
        values: measured, or bounded.
        rules: of the target.
        budget_db: least SNR that an operation's error may leave.
    """
    return tuple(_judged(value, [rule for rule in rules if exceeds(value, rule.when, budget_db)]) for value in values)


def _judged(value: _Measured, rules: Sequence[HazardRule]) -> _Measured:
    advice = rules[0].advice_for(value.kind) if rules else ""
    return dataclasses.replace(value, rules=tuple(rule.id for rule in rules), advice=advice)
