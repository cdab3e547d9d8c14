"""Self-test of the parity gate: apply every mutation, with the full comparison against the checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from md_export.checkpoint import open_checkpoint
from md_export.engine.against_checkpoint import (
    Lowered,
    comparison,
    derived_findings,
    embeddings_of,
    graph_findings,
    lowered_again,
    reference_of,
)
from md_export.errors import RuntimeFault
from md_export.parity.golden.recomputed import expected_cases
from md_export.parity.metrics import Fault
from md_export.parity.opened_export import check_checkpoint, open_export
from md_export.parity.prompts import torch_findings
from md_export.parity.selftest.answers import Bench
from md_export.parity.selftest.run import Audit, Row, SelfTest, auditor, try_all
from md_export.spec.manifest import read_manifest
from md_export.spec.tensors import Array
from md_export.system.isolation import isolated
from md_export.system.workspace import scratch_folder
from md_export.targets import TARGETS


@dataclass(frozen=True)
class Subject:
    """The export in ``out``, the checkpoint that it was made from, and the artifacts lowered ``again`` from it."""

    out: Path
    checkpoint: Path
    again: Lowered


def self_test(
    out: Path,
    checkpoint_dir: Path,
    progress: Callable[[str], None] = lambda _: None,
    loras: Sequence[str] = (),
) -> SelfTest:
    """Apply every mutation of the table to copies of the export in ``out``; ``out`` itself is only read.

    ``loras``: those that it was exported with, as for :func:`md_export.engine.against_checkpoint.verify`.

    Raises:
        ArtifactError: the manifest is unreadable, or the export was made from another checkpoint.
        CheckpointError: the checkpoint cannot be read.
        MissingExtraError: the target's libraries are not installed.
        RuntimeFault: the worker died.
    """
    started = time.perf_counter()
    manifest = read_manifest(out)
    TARGETS[manifest.target].require()
    with comparison(out, checkpoint_dir, loras) as asked, scratch_folder() as folder:
        check_checkpoint(manifest, open_checkpoint(asked.checkpoint))
        again = lowered_again(asked, folder, progress)
        progress(f"self-test of the gate on copies of {out}")
        subject = Subject(out, asked.checkpoint, again)
        rows = isolated(try_everything, RuntimeFault, f"self-test on {out}")(subject)
    return SelfTest(manifest.target, manifest.recipe.name, round(time.perf_counter() - started, 1), rows)


def try_everything(subject: Subject) -> tuple[Row, ...]:
    """Apply every mutation to copies of an export, in this process, and return the checks that detect it."""
    return tuple(try_all(subject.out, comparer(subject.checkpoint, subject.again)))


def comparer(checkpoint_dir: Path, again: Lowered) -> Audit:
    """Return an audit of one component and of everything derived from the checkpoint; references are built once."""
    weights, bench, checkpoint = auditor(checkpoint_dir), Bench(), open_checkpoint(checkpoint_dir)
    references: dict[str, list[Fault]] = {}
    asked: list[tuple[str, int]] = []
    embedded: dict[tuple[str, ...], dict[str, Array]] = {}

    def compare(out: Path, component: str) -> Sequence[Fault]:
        export = open_export(out)
        # The first copy is not damaged and has a few of the cases.
        asked.extend(() if asked else expected_cases(export.manifest.recipe))
        if export.golden.sha256 not in references:
            found = reference_of(export, checkpoint, lambda _: None)
            references[export.golden.sha256] = [one.fault for one in found]
        derived = [*derived_findings(export, checkpoint, asked, bench.execute)]
        if prompts := export.manifest.stored_prompts:
            if prompts not in embedded:
                embedded[prompts] = embeddings_of(export.manifest, checkpoint)
            derived += torch_findings(out, export.manifest, embedded[prompts])
        others = (*derived, *graph_findings(export, again, (component,)))
        return [*weights(out, component), *references[export.golden.sha256], *(one.fault for one in others)]

    return compare
