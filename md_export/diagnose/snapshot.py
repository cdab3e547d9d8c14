"""Collect the facts about one export that a later export is compared with: verdicts, bytes, ops, lint, residency."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from md_export.diagnose.lint import lint
from md_export.parity.gpu import verify_on_gpu
from md_export.parity.verdict import Verification
from md_export.spec.artifact import artifact_path, bytes_of_artifact
from md_export.spec.manifest import Manifest
from md_export.targets import TARGETS
from md_export.targets.contract import Lints
from md_export.targets.lint.report import LintReport

Counts = dict[str, dict[str, int]]


@dataclass(frozen=True)
class Snapshot:
    """Facts about an export by component, read from the artifacts and not from the manifest.

    Attributes:
        bytes: size of the artifact.
        stored: bytes of weights by dtype.
        ops: number of operations by kind.
        lint: number of operations by the rule that advises against them; None if the target has no rules.
        cpu_ops: operations that LiteRT's GPU engine leaves to the CPU; None if it was not run.
    """

    verification: Verification
    bytes: dict[str, int]
    stored: Counts
    ops: Counts
    lint: Counts | None = None
    cpu_ops: dict[str, int] | None = None


def snapshot(
    out: Path,
    manifest: Manifest,
    verification: Verification,
    gpu_limit_s: float | None,
    progress: Callable[[str], None],
) -> Snapshot:
    """Read the artifacts of a verified export.

    Args:
        out: folder of the export.
        manifest: manifest of the export.
        verification: verdict on the export.
        gpu_limit_s: seconds after which each attempt of the GPU engine is stopped; None to leave that engine out.
        progress: called with a line for each step.

    Raises:
        MdExportError: an artifact cannot be read.
    """
    target = TARGETS[manifest.target]
    paths = {entry.component: artifact_path(out, entry) for entry in manifest.artifacts}
    found = {name: target.open().describe(path) for name, path in paths.items()}
    advice = None
    if isinstance(target, Lints):
        progress(f"lint {manifest.recipe.name}")
        advice = {name: _against(*lint(path)) for name, path in paths.items()}
    return Snapshot(
        verification,
        {name: bytes_of_artifact(path) for name, path in paths.items()},
        {name: one.stored for name, one in found.items()},
        {name: one.ops for name, one in found.items()},
        advice,
        None if gpu_limit_s is None else _cpu_ops(out, gpu_limit_s, progress),
    )


def _against(report: LintReport) -> dict[str, int]:
    """Count the operations that each rule advises against; a remark on the whole artifact counts as one."""
    fitting = Counter([*(name for op in report.ops for name in op.rules), *report.remarks])
    return {rule.id: fitting[rule.id] for rule in report.rules if rule.verdict != "likely"}


def _cpu_ops(out: Path, limit_s: float, progress: Callable[[str], None]) -> dict[str, int]:
    """Count the operations left to the CPU by component; all of them if the engine failed."""
    judged = verify_on_gpu(out, None, limit_s, progress)
    runs = {item.component: item.engine for item in judged.components}
    return {name: run.ops if run.resident is None else run.on_cpu for name, run in runs.items()}
