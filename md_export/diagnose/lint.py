"""Advice on packages: one, or all of an export; each is read, and run on inputs where there are some, in a worker."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter

from md_export.errors import ArtifactError, UsageError
from md_export.parity.golden.folder import INDEX, read_golden
from md_export.parity.golden.surface import golden_inputs
from md_export.spec.artifact import GOLDEN_FOLDER, ArtifactEntry, artifact_path
from md_export.spec.manifest import MANIFEST, Manifest, read_manifest
from md_export.spec.tensors import Arrays, read_npz
from md_export.targets import TARGETS, target_of
from md_export.targets.advice import LintReport
from md_export.targets.bounds import judged
from md_export.targets.contract import Lints, Target
from md_export.targets.execution import exchange
from md_export.worker.calling import call_worker

_REPORT: Final = TypeAdapter(LintReport)
# Of the recipes that store weights in float16: what float16 arithmetic may cost where nothing stricter can be met.
FLOAT16_BUDGET_DB: Final = 55.0


def lint(
    path: Path,
    system: str | None = None,
    inputs: Path | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[LintReport, ...]:
    """Judge a package by known rules, and its activations by what float16 holds.

    Args:
        path: a package of any tool, or a folder that md-export wrote; its golden cases are the inputs then.
        system: whose rules to apply (``iOS18``); the oldest that loads the package if None.
        inputs: an ``.npz`` file for one package.
        progress: told of each package.

    Raises:
        ArtifactError: no readable package or export.
        UsageError: a target without rules, ``inputs`` for a whole export, or a system that does not fit.
        RuntimeFault: a package that does not run on the inputs.
    """
    if not (path / MANIFEST).is_file():
        report = _lint_one(target_of(path), path, system, [read_npz(inputs)] if inputs else [])
        return (_within(report, FLOAT16_BUDGET_DB),)
    if inputs:
        raise UsageError(f"{path} is an export and brings its golden cases; --inputs is for one package")
    manifest, reports = read_manifest(path), []
    for entry in manifest.artifacts:
        progress(f"lint {entry.component}")
        batches = _golden_inputs(path, manifest, entry)
        report = _lint_one(TARGETS[manifest.target], artifact_path(path, entry), system, batches)
        reports.append(_within(report, budget_of(manifest, entry)))
    return tuple(reports)


def budget_of(manifest: Manifest, entry: ArtifactEntry) -> float:
    """What an op may lose: the recipe's tolerance, but of a float32 recipe what float16 arithmetic can meet at all."""
    return min(manifest.recipe.tolerances[entry.component].snr_db, FLOAT16_BUDGET_DB)


def _within(report: LintReport, budget_db: float) -> LintReport:
    """With its bounds, if it has any, held against a budget."""
    if report.bounds is None:
        return report
    return dataclasses.replace(report, bounds=judged(report.bounds, budget_db), budget_db=budget_db)


def _lint_one(target: Target, path: Path, system: str | None, batches: Sequence[Arrays]) -> LintReport:
    if not isinstance(target, Lints):
        known = ", ".join(item.suffix for item in TARGETS.values() if isinstance(item, Lints))
        raise UsageError(f"there are no rules for {path.name}; lint reads {known}")
    with exchange(batches) as files:
        request = {**files.request, "target": target.name, "path": str(path), "system": system}
        answer = call_worker("lint", request, ArtifactError, path.name)
    return _REPORT.validate_json(json.dumps(answer))


def _golden_inputs(out: Path, manifest: Manifest, entry: ArtifactEntry) -> list[Arrays]:
    """Of every golden case that lies in the export; none where there is no such folder."""
    if not (out / GOLDEN_FOLDER / INDEX).is_file():
        return []
    return golden_inputs(manifest.recipe, entry, read_golden(out / GOLDEN_FOLDER).cases)
