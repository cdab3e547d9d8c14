"""Self-test of an export: apply all mutations in one worker, and audit stored weights against the checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from md_export.checkpoint import open_checkpoint
from md_export.errors import RuntimeFault
from md_export.parity.opened_export import check_checkpoint
from md_export.parity.selftest.run import Audit, Row, try_all
from md_export.parity.weights.audit import audit_component
from md_export.parity.weights.reference import Reference, prepare_reference
from md_export.spec.artifact import GOLDEN_FOLDER
from md_export.spec.manifest import read_manifest
from md_export.system.isolation import isolated
from md_export.targets import TARGETS


@dataclass(frozen=True)
class SelfTest:
    """Result of the mutations of one export."""

    target: str
    recipe: str
    seconds: float
    rows: tuple[Row, ...]

    @property
    def failures(self) -> tuple[str, ...]:
        """One line for each mutation that verification let pass, or that the wrong check noticed."""
        return tuple(_failure(row) for row in self.rows if not row.passed)


def _failure(row: Row) -> str:
    if not row.expected:
        return f"{row.mutation}: {', '.join(row.caught_by)} found: {row.said}"
    where = f"{row.of}, {row.hashes}"
    noticed = f"only {', '.join(row.caught_by)} noticed" if row.caught_by else "nothing noticed"
    return f"{row.mutation} ({where}): {row.expected} was to notice, {noticed}"


@dataclass(frozen=True)
class Subject:
    """An export in ``out``, and the checkpoint that it was made from."""

    out: Path
    checkpoint: Path


def self_test(out: Path, checkpoint_dir: Path, progress: Callable[[str], None] = lambda _: None) -> SelfTest:
    """Apply every mutation of the table to copies of the export in ``out``; ``out`` itself is only read.

    Raises:
        ArtifactError: the manifest is unreadable, or the export was made from another checkpoint.
        CheckpointError: the checkpoint cannot be read.
        MissingExtraError: the target's libraries are not installed.
        RuntimeFault: the worker died.
    """
    started = time.perf_counter()
    manifest = read_manifest(out)
    TARGETS[manifest.target].require()
    check_checkpoint(manifest, open_checkpoint(checkpoint_dir))
    progress(f"self-test of the gate on copies of {out}")
    rows = isolated(try_everything, RuntimeFault, f"self-test on {out}")(Subject(out, checkpoint_dir))
    return SelfTest(manifest.target, manifest.recipe.name, round(time.perf_counter() - started, 1), rows)


def try_everything(subject: Subject) -> tuple[Row, ...]:
    """Apply every mutation to copies of an export and record which check notices it, in this process."""
    return tuple(try_all(subject.out, auditor(subject.checkpoint)))


def auditor(checkpoint_dir: Path) -> Audit:
    """Return an audit for this process; it builds the reference of each component only once."""
    checkpoint = open_checkpoint(checkpoint_dir)
    references: dict[str, Reference] = {}

    def audit(out: Path, component: str) -> Sequence[str]:
        manifest = read_manifest(out)
        if component not in references:
            references[component] = prepare_reference(checkpoint, manifest.recipe, component, out / GOLDEN_FOLDER)
        return audit_component(out, manifest, manifest.entry_for(component), references[component]).faults

    return audit
