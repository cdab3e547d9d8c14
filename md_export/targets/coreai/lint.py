"""Advice on a saved asset: what Apple publishes of the Neural Engine, per operation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from md_export.errors import UsageError
from md_export.spec.tensors import Arrays
from md_export.targets.advice import LintReport, OpAdvice, Verdict
from md_export.targets.coreai.facts import OpFacts, read_facts
from md_export.targets.coreai.rules import LAYOUT, MOST_BYTES, RULES, SIZE, VERSION

SYSTEM: Final = "iOS27"
# The first that a rule gives is the operation's verdict.
_ORDER: Final[tuple[Verdict, ...]] = ("unlikely", "unknown", "likely")


def lint(path: Path, system: str | None = None, batches: Sequence[Arrays] = ()) -> LintReport:
    """Judge an asset by rules; nothing is run.

    Args:
        path: the ``.aimodel``, of any tool.
        system: ``iOS27``, the first and only one that loads it, or None.
        batches: sets of inputs; Apple's runtime computes what float16 does to them, so ``verify`` measures it.

    Raises:
        ArtifactError: no readable asset.
        UsageError: another system.
    """
    if system not in (None, SYSTEM):
        raise UsageError(f"{path.name} is loaded by {SYSTEM} and later; leave out --os")
    del batches
    facts = read_facts(path)
    ops = tuple(map(_advice, facts.ops))
    fitting = {name for op in ops for name in op.rules}
    remarks = (SIZE,) if facts.weight_bytes > MOST_BYTES else ()
    return LintReport(
        file=path.name,
        system=SYSTEM,
        rules_version=VERSION,
        rules=(*(item.rule for item in RULES if item.rule.id in fitting), *remarks),
        ops=ops,
        layout_bytes=sum(op.bytes for op in ops if op.kind in LAYOUT),
        remarks=tuple(rule.id for rule in remarks),
        hazard_rules=(),
    )


def _advice(op: OpFacts) -> OpAdvice:
    fitting = [item.rule for item in RULES if item.fits(op)]
    said = {rule.verdict for rule in fitting}
    verdict: Verdict = next((item for item in _ORDER if item in said), "unknown")
    return OpAdvice(op.name, op.kind, op.module, verdict, tuple(rule.id for rule in fitting), op.bytes)
