"""Every artifact on every golden case, and the whole chain to the picture, judged by the recipe's thresholds.

A component is run on its golden inputs and compared with its golden outputs; the chain feeds each artifact
what the artifacts before it made. Finite first, then shape and dtype, then the figures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from md_export.errors import ArtifactError, MdExportError
from md_export.models.sampling.denoising import denoise
from md_export.models.sampling.generate import only_output, picture_from
from md_export.parity.chain import CHAIN, by_output, chain_inputs, control_path, named
from md_export.parity.contents import claim_faults, note_faults, stored_faults, surface_faults
from md_export.parity.golden.surface import packed
from md_export.parity.metrics import Check, Fault
from md_export.parity.opened_export import open_export
from md_export.parity.subject import Subject, judge_picture
from md_export.parity.verdict import ComponentVerdict, Verdict, Verification
from md_export.spec.sampler import Ddim
from md_export.spec.tensors import Array, Arrays
from md_export.targets import target_named
from md_export.targets.execution import Execution, Walk, execute, walk

# Runs an artifact of a target on batches, as :func:`md_export.targets.execution.execute` does.
Execute = Callable[[str, Path, Sequence[Arrays]], Execution]
# Takes all steps of some pictures, as :func:`md_export.targets.execution.walk` does.
Walker = Callable[[str, Path, Sequence[Arrays], Ddim, Path | None], Walk]


def walker(execute: Execute) -> Walker:
    """One that takes each step by ``execute``, for all pictures at a time."""

    def walk(target: str, path: Path, starts: Sequence[Arrays], ddim: Ddim, control: Path | None = None) -> Walk:
        hazards: dict[str, None] = {}

        def run(artifact: Path, batches: Sequence[Arrays]) -> Sequence[Arrays]:
            made = execute(target, artifact, batches)
            hazards.update(dict.fromkeys(made.hazards))
            return made.outputs

        def calls(batches: Sequence[Arrays]) -> list[Array]:
            return [only_output(outputs) for outputs in run(path, batches)]

        controls = None if control is None else partial(run, control)
        return Walk([*denoise(calls, starts, ddim, controls)], tuple(hazards))

    return walk


def verify(out: Path, golden_dir: Path | None = None, progress: Callable[[str], None] = lambda _: None) -> Verdict:
    """The verdict of :func:`judge` alone."""
    return judge(out, golden_dir, progress).result


def judge(
    out: Path,
    golden_dir: Path | None = None,
    progress: Callable[[str], None] = lambda _: None,
    execute: Execute = execute,
    walk: Walker = walk,
) -> Verification:
    """Judge the export in ``out`` against ``golden_dir``, by default the golden cases that lie in ``out``.

    ``execute`` runs an artifact, and ``walk`` takes many steps with one; by default in a process of its own.

    Raises:
        ArtifactError: the manifest is unreadable, or an artifact is missing.
        GoldenError: the golden cases are unreadable, altered, or of another checkpoint.
        MissingExtraError: the target's runtime is not installed.
    """
    export = open_export(out, golden_dir)
    manifest, golden = export.manifest, export.golden
    target_named(manifest.target).require()
    chain: dict[str, list[Array]] = {}
    results = []
    for entry in manifest.artifacts:
        progress(f"verify {manifest.target} {entry.component} on {len(golden.cases)} golden cases")
        verdict, outputs = _judge_component(Subject(export, entry, golden.cases), chain, execute, walk)
        results.append(verdict)
        chain |= by_output(entry, outputs)
    whole = set(CHAIN) <= set(chain)
    pictures = tuple(picture_from(image) for image in chain["vae_decoder"]) if whole else ()
    picture = judge_picture(manifest, golden.cases, pictures) if whole else None
    result = Verdict(manifest.target, manifest.recipe.name, len(golden.cases), tuple(results), picture)
    return Verification(manifest, result, golden, pictures)


def _judge_component(
    subject: Subject, chain: dict[str, list[Array]], execute: Execute, walk: Walker
) -> tuple[ComponentVerdict, list[Arrays]]:
    """A verdict, and what the artifact makes of what those before it made; nothing where a fault forbids it."""
    manifest, entry, cases = subject.export.manifest, subject.entry, subject.cases
    recipe, scheme = manifest.recipe, manifest.recipe.schemes[entry.component]
    try:
        inputs, wanted = subject.inputs(), subject.wanted()
    except ArtifactError as error:
        return subject.verdict(None, [Fault(Check.SURFACE, str(error))]), []
    following = chain_inputs(manifest, entry, cases, chain)
    steps = manifest.ddim if entry.component == "unet" else None
    chained = [] if steps else [packed(recipe, entry, batch) for batch in following]
    faults = surface_faults(entry, inputs[0], wanted[0])
    try:
        run = execute(manifest.target, subject.path, [*inputs, *chained])
        parity, short = subject.compare(run.outputs[: len(inputs)])
        control = control_path(subject.export.out, manifest) if steps else None
        begun = following if parity else []
        walked = walk(manifest.target, subject.path, begun, steps, control) if steps and begun else Walk([])
        faults += [Fault(Check.OVERFLOW, line) for line in dict.fromkeys((*run.hazards, *walked.hazards))]
        faults += note_faults(manifest, entry, run.found.notes)
        faults += claim_faults(subject.export.out, entry, scheme, run.found)
    except MdExportError as error:
        return subject.verdict(None, [*faults, Fault(Check.EXECUTION, str(error))]), []
    faults += short + stored_faults(entry, scheme, run.found)
    made = [{"": latent} for latent in walked.latents] if steps else run.outputs[len(inputs) :]
    return subject.verdict(None, faults, parity), [named(entry, item) for item in made] if parity else []
