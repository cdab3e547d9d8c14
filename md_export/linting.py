"""Advice on packages: one, or all of an export; each is read, and run on inputs where there are some, in a worker."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter

from md_export.artifact import GOLDEN_FOLDER, MANIFEST, ArtifactEntry, Manifest, artifact_path, read_manifest
from md_export.errors import ArtifactError, UsageError
from md_export.layouts import layout_of
from md_export.npz import read_npz
from md_export.parity.golden import INDEX, read_golden
from md_export.targets import TARGETS, Target, target_of
from md_export.targets.advice import LintReport
from md_export.tensors import Arrays, select
from md_export.workers import call_worker, save_batches

_REPORT: Final = TypeAdapter(LintReport)


def lint(
    path: Path,
    system: str | None = None,
    inputs: Path | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[LintReport, ...]:
    """Judge a package by published rules, and its activations by what float16 holds.

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
        return (_lint_one(target_of(path), path, system, [read_npz(inputs)] if inputs else []),)
    if inputs:
        raise UsageError(f"{path} is an export and brings its golden cases; --inputs is for one package")
    manifest, reports = read_manifest(path), []
    for entry in manifest.artifacts:
        progress(f"lint {entry.component}")
        batches = _golden_inputs(path, manifest, entry)
        reports.append(_lint_one(TARGETS[manifest.target], artifact_path(path, entry), system, batches))
    return tuple(reports)


def _lint_one(target: Target, path: Path, system: str | None, batches: Sequence[Arrays]) -> LintReport:
    if not target.lints:
        known = ", ".join(item.suffix for item in TARGETS.values() if item.lints)
        raise UsageError(f"there are no rules for {path.name}; lint reads {known}")
    with tempfile.TemporaryDirectory(prefix="md-export-") as scratch:
        given = Path(scratch) / "inputs.safetensors"
        save_batches(batches, given)
        request = {"target": target.name, "path": str(path), "system": system, "inputs": str(given)}
        answer = call_worker("lint", request, ArtifactError, path.name)
    return _REPORT.validate_json(json.dumps(answer))


def _golden_inputs(out: Path, manifest: Manifest, entry: ArtifactEntry) -> list[Arrays]:
    """Of every golden case that lies in the export; none where there is no such folder."""
    if not (out / GOLDEN_FOLDER / INDEX).is_file():
        return []
    layout = layout_of(manifest.recipe)
    cases = read_golden(out / GOLDEN_FOLDER).cases
    try:
        return [select(layout.pack(entry.component, case.inputs(entry.component)), entry.inputs) for case in cases]
    except KeyError as error:
        raise ArtifactError(f"{out / MANIFEST}: {entry.component} has no input {error}; it was edited") from error
