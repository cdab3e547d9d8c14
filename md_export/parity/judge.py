"""Every artifact on every golden case, and the whole chain to the picture, judged by the recipe's thresholds.

A component is run on its golden inputs and compared with its golden outputs; the chain feeds each artifact
what the artifacts before it made. Finite first, then shape and dtype, then the figures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from md_export.errors import ArtifactError, MdExportError
from md_export.models.sampling.denoising import denoise
from md_export.models.sampling.generate import Float32, only_output, picture_from
from md_export.parity.chain import CHAIN, by_output, chain_inputs, control_path, named
from md_export.parity.contents import claim_faults, note_faults, stored_faults, surface_faults
from md_export.parity.golden.case import GoldenCase
from md_export.parity.golden.surface import each_call, golden_inputs, golden_outputs, packed
from md_export.parity.metrics import Check, Fault, compare, first_fault, worst
from md_export.parity.opened_export import OpenedExport, open_export
from md_export.parity.verdict import ComponentResult, PictureResult, Verification, VerifyResult
from md_export.spec.artifact import ArtifactEntry, Parity, artifact_path, is_unchanged
from md_export.spec.manifest import Manifest
from md_export.spec.recipe import Tolerance
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


def verify(out: Path, golden_dir: Path | None = None, progress: Callable[[str], None] = lambda _: None) -> VerifyResult:
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
        verdict, outputs = _judge_component(export, entry, chain, execute, walk)
        results.append(verdict)
        chain |= by_output(entry, outputs)
    whole = set(CHAIN) <= set(chain)
    pictures = tuple(picture_from(image) for image in chain["vae_decoder"]) if whole else ()
    picture = judge_picture(manifest, golden.cases, pictures) if whole else None
    result = VerifyResult(manifest.target, manifest.recipe.name, len(golden.cases), tuple(results), picture)
    return Verification(manifest, result, golden, pictures)


def _judge_component(
    export: OpenedExport, entry: ArtifactEntry, chain: dict[str, list[Array]], execute: Execute, walk: Walker
) -> tuple[ComponentResult, list[Arrays]]:
    manifest, recipe, cases = export.manifest, export.manifest.recipe, export.golden.cases
    path = artifact_path(export.out, entry)
    tolerance, scheme = recipe.tolerances[entry.component], recipe.schemes[entry.component]
    faults = altered_faults(export.out, entry)
    try:
        inputs = golden_inputs(recipe, entry, cases)
        wanted = golden_outputs(recipe, entry, cases)
    except ArtifactError as error:
        fault = Fault(Check.SURFACE, str(error))
        return ComponentResult(entry.component, entry.file, None, tolerance, (*faults, fault)), []
    following = chain_inputs(manifest, entry, cases, chain)
    steps = manifest.ddim if entry.component == "unet" else None
    chained = [] if steps else [packed(recipe, entry, batch) for batch in following]
    faults += surface_faults(entry, inputs[0], wanted[0])
    try:
        run = execute(manifest.target, path, [*inputs, *chained])
        outputs = [named(entry, item) for item in run.outputs]
        count = len(inputs)
        names = [call.label for call in each_call(entry.component, cases)]
        parity, broken = _parity(outputs[:count], wanted, names)
        control = control_path(export.out, manifest) if steps else None
        walked = walk(manifest.target, path, following, steps, control) if steps and parity and following else Walk([])
        faults += [Fault(Check.OVERFLOW, line) for line in dict.fromkeys((*run.hazards, *walked.hazards))]
        faults += note_faults(manifest, entry, run.found.notes) + claim_faults(export.out, entry, scheme, run.found)
    except MdExportError as error:
        failed = Fault(Check.EXECUTION, str(error))
        return ComponentResult(entry.component, entry.file, None, tolerance, (*faults, failed)), []
    faults += (shortfalls(parity, tolerance) if parity else broken) + stored_faults(entry, scheme, run.found)
    verdict = ComponentResult(entry.component, entry.file, parity, tolerance, tuple(faults))
    made = [named(entry, {"": latent}) for latent in walked.latents] if steps else outputs[count:]
    return verdict, made if parity else []


def _parity(
    made: Sequence[Arrays], wanted: Sequence[Arrays], names: Sequence[str]
) -> tuple[Parity | None, list[Fault]]:
    """Worst figures over all cases and outputs; of several outputs each is judged by itself."""
    several = len(wanted[0]) > 1
    pairs = [
        (got[name], want[name], f"{label} {name}" if several else label)
        for got, want, label in zip(made, wanted, names, strict=True)
        for name in want
    ]
    return worst_parity([got for got, _, _ in pairs], [want for _, want, _ in pairs], [label for _, _, label in pairs])


def altered_faults(out: Path, entry: ArtifactEntry) -> list[Fault]:
    """Whether the artifact is the one that the manifest was written for."""
    text = "its bytes are not those of the manifest; it was altered"
    return [] if is_unchanged(out, entry) else [Fault(Check.BYTES, text)]


def worst_parity(made: list[Array], wanted: list[Array], names: Sequence[str]) -> tuple[Parity | None, list[Fault]]:
    """Worst figures over all cases; None, and what is wrong with each, where one cannot be compared at all."""
    cases = list(zip(made, wanted, names, strict=True))
    broken = [fault.of(name) for got, want, name in cases if (fault := first_fault(got, want))]
    return (None, broken) if broken else (worst([compare(got, want) for got, want, _ in cases]), [])


def judge_picture(manifest: Manifest, cases: Sequence[GoldenCase], pictures: tuple[Float32, ...]) -> PictureResult:
    """The pictures that a chain made of some golden cases, against theirs; none where it broke off."""
    least = manifest.recipe.picture_psnr_db
    if not pictures:
        return PictureResult(None, least, (Fault(Check.PICTURE, "no picture, since a component before it failed"),))
    figures = []
    for case, picture in zip(cases, pictures, strict=True):
        fault = first_fault(picture, case.values.picture)
        if fault:
            return PictureResult(None, least, (Fault(Check.PICTURE, f"{case.name}: {fault}"),))
        figures.append(compare(picture, case.values.picture).psnr_db)
    psnr = float(np.min(figures))
    if psnr >= least:
        return PictureResult(psnr, least, ())
    return PictureResult(psnr, least, (Fault(Check.PICTURE, f"PSNR {psnr:.1f} dB is below the recipe's {least:g} dB"),))


def shortfalls(parity: Parity, tolerance: Tolerance) -> list[Fault]:
    """Each threshold that is not met. Written so that a NaN figure falls short."""
    lines = []
    for name, unit in (("snr_db", " dB"), ("psnr_db", " dB"), ("cosine", "")):
        least, value = getattr(tolerance, name), getattr(parity, name)
        if least is not None and not value >= least:
            lines.append(f"{name.removesuffix('_db')} {value:.4g}{unit} is below the recipe's {least:g}{unit}")
    if tolerance.max_abs is not None and not parity.max_abs <= tolerance.max_abs:
        lines.append(f"max error {parity.max_abs:.4g} is above the recipe's {tolerance.max_abs:g}")
    return [Fault(Check.FIGURES, line) for line in lines]
