"""Advice on a saved asset: what Apple publishes of the Neural Engine, per operation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from md_export.errors import UsageError
from md_export.spec.tensors import Arrays
from md_export.targets.coreai.facts import read_facts
from md_export.targets.lint.judge import judge
from md_export.targets.lint.report import LintReport
from md_export.targets.lint.rules import rules_of


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
    rules = rules_of("coreai")
    (known,) = rules.systems
    if system not in (None, known):
        raise UsageError(f"{path.name} is loaded by {known} and later; leave out --os")
    del batches
    return judge(path.name, read_facts(path), rules, known)
