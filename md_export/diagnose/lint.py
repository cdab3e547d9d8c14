"""Lint one package or all artifacts of an export; a worker reads each and, given inputs, runs it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from md_export.errors import ArtifactError, UsageError
from md_export.parity.golden.folder import INDEX, read_golden
from md_export.parity.golden.surface import golden_inputs
from md_export.spec.artifact import GOLDEN_FOLDER, ArtifactEntry, artifact_path
from md_export.spec.given import MANIFEST
from md_export.spec.manifest import Manifest, read_manifest
from md_export.spec.tensors import Arrays, read_npz
from md_export.system.isolation import isolated
from md_export.targets import TARGETS, target_of
from md_export.targets.contract import Lints, Target
from md_export.targets.lint.judge import judged
from md_export.targets.lint.report import LintReport

# Threshold of the recipes with float16 weights in dB: the largest budget, because float16 cannot meet a stricter one.
FLOAT16_BUDGET_DB: Final = 55.0


@dataclass(frozen=True)
class LintRequest:
    """One artifact of a target, the system whose rules to apply, and the inputs to run it on."""

    target: str
    path: Path
    system: str | None
    batches: tuple[Arrays, ...]


def advise(request: LintRequest) -> LintReport:
    """Advise on one artifact; with inputs, run it and report float16 hazards too."""
    target = TARGETS[request.target].open()
    if not isinstance(target, Lints):
        raise _no_rules(request.path)
    return target.lint(request.path, request.system, request.batches)


def lint(
    path: Path, system: str | None = None, inputs: Path | None = None, progress: Callable[[str], None] = lambda _: None
) -> tuple[LintReport, ...]:
    """Check a package against known rules, and its activations against the float16 range.

    Args:
        path: a package of any tool, or an export folder; the inputs of an export are its golden cases.
        system: system whose rules apply (``iOS18``); None for the oldest that loads the package.
        inputs: an ``.npz`` file for one package.
        progress: called with a line for each package.

    Raises:
        ArtifactError: the package or export cannot be read.
        UsageError: the target has no rules, ``inputs`` is given for an export, or the system does not suit the package.
        RuntimeFault: the package does not run on the inputs.
    """
    if not (path / MANIFEST).is_file():
        report = _lint_one(target_of(path), path, system, [read_npz(inputs)] if inputs else [])
        return (_within(report, FLOAT16_BUDGET_DB),)
    if inputs:
        raise UsageError(f"{path} is an export, which is checked on its golden cases; --inputs is for one package")
    manifest, reports = read_manifest(path), []
    for entry in manifest.artifacts:
        progress(f"lint {entry.component}")
        batches = _golden_inputs(path, manifest, entry)
        report = _lint_one(TARGETS[manifest.target], artifact_path(path, entry), system, batches)
        reports.append(_within(report, budget_of(manifest, entry)))
    return tuple(reports)


def budget_of(manifest: Manifest, entry: ArtifactEntry) -> float:
    """Return the least SNR in dB that an op may have: the recipe's threshold, at most :data:`FLOAT16_BUDGET_DB`."""
    return min(manifest.recipe.tolerances[entry.component].snr_db, FLOAT16_BUDGET_DB)


def _within(report: LintReport, budget_db: float) -> LintReport:
    """Return the report with its bounds, if it has any, compared with a budget."""
    if report.bounds is None:
        return report
    return dataclasses.replace(
        report, bounds=judged(report.bounds, report.hazard_rules, budget_db), budget_db=budget_db
    )


def _lint_one(target: Target, path: Path, system: str | None, batches: Sequence[Arrays]) -> LintReport:
    if not isinstance(target, Lints):
        raise _no_rules(path)
    return isolated(advise, ArtifactError, path.name)(LintRequest(target.name, path, system, tuple(batches)))


def _no_rules(path: Path) -> UsageError:
    known = ", ".join(item.suffix for item in TARGETS.values() if isinstance(item, Lints))
    return UsageError(f"there are no rules for {path.name}; lint reads {known}")


def _golden_inputs(out: Path, manifest: Manifest, entry: ArtifactEntry) -> list[Arrays]:
    """Return the inputs of every golden case in the export; empty if the export has no golden folder."""
    if not (out / GOLDEN_FOLDER / INDEX).is_file():
        return []
    return golden_inputs(manifest.recipe, entry, read_golden(out / GOLDEN_FOLDER).cases)
