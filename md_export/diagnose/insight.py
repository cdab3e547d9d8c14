"""Collect explanations of an export: lint advice and, given its checkpoint, the errors of modules and weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from md_export.checkpoint import open_checkpoint
from md_export.diagnose.attribution.attribute import Attribution, attribute
from md_export.diagnose.lint import lint
from md_export.errors import MdExportError
from md_export.parity.opened_export import check_checkpoint
from md_export.parity.weights.audit import AuditResult, audit
from md_export.spec.artifact import artifact_path
from md_export.spec.manifest import read_manifest
from md_export.targets import TARGETS
from md_export.targets.contract import Lints
from md_export.targets.lint.report import LintReport


@dataclass
class Insight:
    """Explanations of one export; an artifact that cannot be read is left out and named in ``failures``.

    Attributes:
        lint: one report per artifact; empty if the target has no rules.
        explained: whether a checkpoint was given; without one ``modules`` and ``weights`` are empty.
        checkpoint: name of its folder, or of the file.
    """

    explained: bool = False
    lint: list[LintReport] = field(default_factory=list)
    modules: list[Attribution] = field(default_factory=list)
    weights: AuditResult | None = None
    failures: list[str] = field(default_factory=list)
    checkpoint: str = ""


def look_inside(out: Path, checkpoint_dir: Path | None, progress: Callable[[str], None] = lambda _: None) -> Insight:
    """Read the artifacts of an export and, if its checkpoint is given, compare their modules and weights with it.

    Raises:
        ArtifactError: the manifest cannot be read, or the export was made from another checkpoint.
        CheckpointError, ConfigError: the checkpoint cannot be read.
    """
    manifest = read_manifest(out)
    if checkpoint_dir:
        check_checkpoint(manifest, open_checkpoint(checkpoint_dir))
    name = checkpoint_dir.resolve().name if checkpoint_dir else ""
    found = Insight(explained=checkpoint_dir is not None, checkpoint=name)
    for entry in manifest.artifacts:
        try:
            path = artifact_path(out, entry)
            if isinstance(TARGETS[manifest.target], Lints):
                progress(f"lint {entry.file}")
                found.lint += lint(path)
            if checkpoint_dir:
                found.modules.append(attribute(path, checkpoint_dir, progress))
        except MdExportError as error:
            found.failures.append(f"{entry.component}: {error}")
    if checkpoint_dir:
        try:
            found.weights = audit(out, checkpoint_dir, progress)
        except MdExportError as error:
            found.failures.append(f"stored weights: {error}")
    return found
