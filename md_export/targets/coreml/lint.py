"""Advice on a saved package: rules from ``ane_rules.toml`` per operation, and what real activations do in float16."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from md_export.spec.tensors import Arrays
from md_export.targets.advice import LintReport, OpAdvice, Verdict
from md_export.targets.coreml.conditions import fits
from md_export.targets.coreml.facts import OpFacts, PackageFacts, read_facts
from md_export.targets.coreml.hazard import judged, measure
from md_export.targets.coreml.modules import read_modules
from md_export.targets.coreml.rules import NeuralEngineRule, RuleFile, load_rules, system_of

# The first that a rule gives is the operation's verdict.
_ORDER: Final[tuple[Verdict, ...]] = ("unlikely", "unknown", "likely")


def lint(path: Path, system: str | None = None, batches: Sequence[Arrays] = ()) -> LintReport:
    """Judge a package by the rule file; with inputs, run it too and report its float16 hazards.

    Args:
        path: the ``.mlpackage``, of any tool.
        system: whose rules to apply (``iOS18``); the oldest that loads the package if None.
        batches: sets of inputs.

    Raises:
        ArtifactError: no readable package.
        UsageError: an unknown system, or one too old for the package.
        RuntimeFault: inputs were given, and the package does not run on them.
    """
    facts, rules = read_facts(path), load_rules()
    chosen = system_of(facts.version, system, path.name)
    active = [rule for rule in rules.rule if rule.speaks_of(chosen)]
    modules = read_modules(facts.spec)
    ops = tuple(_advice(op, active, modules) for op in facts.ops)
    remarks = tuple(rule.id for rule in active if _is_heavier(facts, rule))
    fitting = {name for op in ops for name in op.rules} | set(remarks)
    return LintReport(
        file=path.name,
        system=chosen,
        rules_version=rules.version,
        rules=tuple(rule.bare() for rule in active if rule.id in fitting),
        ops=ops,
        layout_bytes=_layout_bytes(facts, rules),
        remarks=remarks,
        hazard_rules=rules.hazard,
        hazards=judged(measure(path, batches), rules.hazard) if batches else None,
    )


def _advice(op: OpFacts, rules: Sequence[NeuralEngineRule], modules: Mapping[str, str]) -> OpAdvice:
    fitting = [rule for rule in rules if rule.when.weight_bytes_over is None and fits(op, rule.when)]
    said = {rule.verdict for rule in fitting}
    verdict = next((item for item in _ORDER if item in said), _ORDER[1])
    return OpAdvice(op.name, op.kind, modules.get(op.name, ""), verdict, tuple(rule.id for rule in fitting), op.bytes)


def _is_heavier(facts: PackageFacts, rule: NeuralEngineRule) -> bool:
    limit = rule.when.weight_bytes_over
    return limit is not None and facts.weight_bytes > limit


def _layout_bytes(facts: PackageFacts, rules: RuleFile) -> int:
    return sum(op.bytes for op in facts.ops if op.kind in rules.layout)
