"""Judge every artifact on every golden case, and the chain from prompt to picture, by the recipe's thresholds.

A component runs on its golden inputs and is compared with its golden outputs; in the chain, each artifact runs on the
outputs of the artifacts before it. Checks in order: finite values, shape and dtype, figures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from md_export.errors import ArtifactError, MachineError, MdExportError
from md_export.models.walk import Steps, Tensors
from md_export.parity.chain import Take, judge_chain
from md_export.parity.golden.surface import packed
from md_export.parity.metrics import Check, Fault
from md_export.parity.opened_export import (
    OpenedExport,
    claim_faults,
    note_faults,
    open_export,
    stored_faults,
    surface_faults,
)
from md_export.parity.promised import promise_faults
from md_export.parity.prompts import artifact_faults, prompt_faults, stored_batches
from md_export.parity.subject import Subject
from md_export.parity.tokens import token_faults
from md_export.parity.verdict import ComponentVerdict, Verdict, Verification
from md_export.spec.tensors import Arrays
from md_export.targets import target_named
from md_export.targets.execution import Execution, Part, execute, run_steps, take_steps

# Runs an artifact of a target on batches, like :func:`md_export.targets.execution.execute`.
Execute = Callable[[str, Path, Sequence[Arrays]], Execution]


def taking(execute: Execute) -> Take:
    """Return a function that runs each sampler step by ``execute``, for all pictures at a time."""

    def take(target: str, parts: Sequence[Part], steps: Steps, pictures: Sequence[Tensors]) -> tuple[str, ...]:
        hazards: dict[str, None] = {}

        def run(part: Part, batches: Sequence[Arrays]) -> Sequence[Arrays]:
            made = execute(target, part.path, batches)
            hazards.update(dict.fromkeys(made.hazards))
            return made.outputs

        run_steps(steps, parts, run, pictures)
        return tuple(hazards)

    return take


def verify(out: Path, golden_dir: Path | None = None, progress: Callable[[str], None] = lambda _: None) -> Verdict:
    """Judge the export in ``out`` and return only the verdict; see :func:`judge`."""
    return judge(out, golden_dir, progress).result


def judge(
    out: Path,
    golden_dir: Path | None = None,
    progress: Callable[[str], None] = lambda _: None,
    execute: Execute = execute,
    take: Take = take_steps,
) -> Verification:
    """Judge the export in ``out`` against the golden cases in ``golden_dir`` (default: those in ``out``).

    ``execute`` runs an artifact, and ``take`` runs many steps with several; by default in a separate process.

    Raises:
        ArtifactError: the manifest is unreadable, or an artifact is missing.
        GoldenError: the golden cases are unreadable, altered, or of another checkpoint.
        MissingExtraError: the target's runtime is not installed.
    """
    export = open_export(out, golden_dir)
    manifest, golden = export.manifest, export.golden
    target_named(manifest.target).require()

    def tell(component: str) -> None:
        progress(f"verify {manifest.target} {component} on {len(golden.cases)} golden cases")

    walked = judge_chain(export, golden.cases, partial(_judge_component, execute), take, tell)
    result = Verdict(manifest.target, manifest.recipe.name, len(golden.cases), walked.verdicts, walked.picture)
    return Verification(manifest, result, golden, walked.pictures)


def _judge_component(
    execute: Execute, subject: Subject, others: Sequence[Arrays]
) -> tuple[ComponentVerdict, Sequence[Arrays]]:
    """Return a verdict and the outputs for the golden inputs, then for ``others``; none if a fault prevents them."""
    manifest, entry = subject.export.manifest, subject.entry
    recipe, scheme = manifest.recipe, manifest.recipe.schemes[entry.component]
    try:
        inputs, wanted = subject.inputs(), subject.wanted()
    except ArtifactError as error:
        return subject.verdict(None, [Fault(Check.SURFACE, str(error))]), []
    faults = surface_faults(entry, inputs[0], wanted[0])
    # Faults of files that no single artifact owns are reported with the first artifact.
    faults += _faults_of_files(subject.export) if entry is manifest.artifacts[0] else []
    try:
        batches = [*inputs, *(packed(recipe, entry, batch) for batch in others)]
        stored = stored_batches(subject)
        run = execute(manifest.target, subject.path, [*batches, *stored.values()])
        faults += artifact_faults(subject, stored, run.outputs[len(batches) :])
        parity, short = subject.compare(run.outputs[: len(inputs)])
        faults += [Fault(Check.OVERFLOW, line) for line in dict.fromkeys(run.hazards)]
        faults += note_faults(manifest, entry, run.found.notes)
        faults += claim_faults(subject.export.out, entry, recipe, run.found)
    except MachineError:
        raise
    except MdExportError as error:
        return subject.verdict(None, [*faults, Fault(Check.EXECUTION, str(error))]), []
    faults += short + stored_faults(entry, scheme, run.found)
    return subject.verdict(None, faults, parity), run.outputs[: len(batches)] if parity else []


def _faults_of_files(export: OpenedExport) -> list[Fault]:
    return [*token_faults(export), *promise_faults(export), *prompt_faults(export)]
