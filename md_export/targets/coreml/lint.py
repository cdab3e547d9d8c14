"""Advice on a saved package: rules on the Neural Engine per operation, and what real activations do in float16."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from md_export.errors import UsageError
from md_export.spec.tensors import Arrays
from md_export.targets.coreml.facts import read_facts
from md_export.targets.coreml.hazard import measure
from md_export.targets.lint.judge import judge, judged
from md_export.targets.lint.report import LintReport
from md_export.targets.lint.rules import rules_of

# Version of Core ML's model format that came with the first of the systems; each later system brought the next.
_FIRST_VERSION: Final = 6


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
    facts, rules = read_facts(path), rules_of("coreml")
    report = judge(path.name, facts, rules, _system(facts.version, system, path.name, rules.systems))
    if not batches:
        return report
    return dataclasses.replace(report, hazards=judged(measure(path, batches), rules.hazard))


def _system(version: int, asked: str | None, name: str, systems: tuple[str, ...]) -> str:
    """The system that was asked for, or the oldest that loads a package of that version."""
    oldest = min(max(version - _FIRST_VERSION, 0), len(systems) - 1)
    if asked is None:
        return systems[oldest]
    if asked not in systems:
        raise UsageError(f"unknown system {asked!r}; use one of {', '.join(systems)}")
    if systems.index(asked) < oldest:
        raise UsageError(f"{name} does not load before {systems[oldest]}; export for {asked}, or leave out --os")
    return asked
