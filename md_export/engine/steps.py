"""Carry out the steps of a plan in worker processes: cases, an artifact, text embeddings, an export.

Each function takes its request, the checkpoint and the :class:`md_export.engine.running.Job`, and returns its result.
The job contains the folders of the steps that it needs and the folder for its output.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

import torch

from md_export import __version__
from md_export.checkpoint import Checkpoint, open_checkpoint
from md_export.checkpoint.derived import adapted
from md_export.engine import plan
from md_export.engine.artifact import BuildStep, build_and_tell
from md_export.engine.coreai_bundle import write_assets
from md_export.engine.dependencies import hashing
from md_export.engine.hops import explain
from md_export.engine.running import Job
from md_export.engine.swift_bundle import check_bundle, write_bundle
from md_export.models.families import graph_of
from md_export.models.sampling.sampler import one_step, steps_of
from md_export.parity.golden.folder import read_golden
from md_export.parity.golden.prepare import add_style, calibration_cases, prepare_golden
from md_export.parity.judge import verify
from md_export.parity.lora_fusing import added_loras
from md_export.parity.prompts import store_prompts
from md_export.parity.styled_module import style_checkpoint
from md_export.parity.verdict import Verdict, with_parity
from md_export.spec.artifact import GOLDEN_FOLDER, ArtifactEntry
from md_export.spec.loras import STYLE_FOLDER
from md_export.spec.manifest import SCHEMA, AddedLora, Drift, Manifest, files_beside, write_manifest
from md_export.spec.prompts import PROMPTS_FILE
from md_export.spec.recipe import Recipe
from md_export.spec.style import StyleInput
from md_export.system.files import copy_file
from md_export.targets import TARGETS, tools_of

_THREADS: Final = 4
# Folder of calibration cases in the entry of their step.
CASES: Final = "cases"


def carry_out(job: Job) -> plan.Result:
    """Carry out one step.

    Raises:
        MdExportError: see the step functions. An export that fails verification is a result, not an error.
    """
    # The number of threads changes the last bits of sums, so golden cases would depend on the number of cores.
    torch.set_num_threads(_THREADS)
    loras = [f"{job.inputs.loras[name]}{tail}" for name, tail in job.request.loras]
    with adapted(job.inputs.checkpoint, loras) as folder:
        checkpoint = open_checkpoint(folder, hashing(job.inputs.seen))
        match job.request:
            case plan.GoldenRequest():
                return golden(job.request, checkpoint, job)
            case plan.CalibrationRequest():
                return calibration(job.request, checkpoint, job)
            case plan.ArtifactRequest():
                return artifact(job.request, checkpoint, job)
            case plan.PromptsRequest():
                return prompts(job.request, checkpoint, job)
            case plan.ExportRequest():
                return export(job.request, checkpoint, job)


def golden(request: plan.GoldenRequest, checkpoint: Checkpoint, job: Job) -> plan.CasesResult:
    """Provide golden cases: the given cases, the checkpoint's, or cases computed by torch."""
    folder = job.folder / GOLDEN_FOLDER
    drift = prepare_golden(request.recipe, checkpoint, job.inputs.golden, folder, job.tell)
    for style, file in _style_files(request.styles, job).items():
        with style_checkpoint(job.inputs.checkpoint, file) as changed:
            add_style(request.recipe, changed, style, folder, job.tell)
    return plan.CasesResult(drift)


def _style_files(styles: tuple[StyleInput, ...], job: Job) -> dict[str, str]:
    """Return the LoRA of each style, ``FILE`` or ``FILE:scale``, by the style's name."""
    return {style.name: f"{job.inputs.loras[style.file]}{style.tail}" for style in styles}


def calibration(request: plan.CalibrationRequest, checkpoint: Checkpoint, job: Job) -> plan.CasesResult:
    """Compute calibration cases in torch."""
    judging = job.files[request.golden] / GOLDEN_FOLDER
    with calibration_cases(request.recipe, checkpoint, judging, job.folder, job.tell) as made:
        assert made is not None  # noqa: S101 (the plan has such a step for recipes that calibrate only)
        shutil.copytree(made, job.folder / CASES)
    return plan.CasesResult()


def artifact(request: plan.ArtifactRequest, checkpoint: Checkpoint, job: Job) -> plan.ArtifactResult:
    """Make one artifact: checkpoint → module → rewrites → lower → quantize → file."""
    judging = job.files[request.golden] / GOLDEN_FOLDER
    cases = None if request.cases is None else job.files[request.cases] / CASES
    styles = _style_files(request.styles, job)
    step = BuildStep(
        checkpoint.root, request.component, request.recipe, judging, job.folder, request.notes, cases, styles
    )
    return plan.ArtifactResult(build_and_tell(step, job.tell))


def prompts(request: plan.PromptsRequest, checkpoint: Checkpoint, job: Job) -> plan.CasesResult:
    """Compute the text embeddings that an export stores, in torch."""
    recipe, checkpoint = request.recipe, checkpoint.at(request.recipe.variant)
    if recipe.prompts is not None:
        texts = recipe.prompts.texts(steps_of(checkpoint.config, recipe.sampler))
        store_prompts(checkpoint, recipe, texts, job.folder)
    return plan.CasesResult()


def export(request: plan.ExportRequest, checkpoint: Checkpoint, job: Job) -> plan.ExportResult:
    """Assemble artifacts and golden cases into an export and verify it.

    If the export passes, only the files that this step made remain in ``job.folder``; the others are in the cache.
    """
    recipe, folder, checkpoint = request.recipe, job.folder, checkpoint.at(request.recipe.variant)
    for key in (request.golden, *request.parts):
        # Copies, not hard links: onnx rejects weight files with more than one link as an attack.
        shutil.copytree(job.files[key], folder, copy_function=copy_file, dirs_exist_ok=True)
    made = [job.results[key] for key in request.parts]
    entries = tuple(result.entry for result in made if isinstance(result, plan.ArtifactResult))
    judged = job.results[request.golden]
    drift = judged.drift if isinstance(judged, plan.CasesResult) else None
    styles = tuple(AddedLora(one.name, one.sha256, one.scale, one.components) for one in request.styles)
    verdict = seal(recipe, checkpoint, folder, entries, drift, job.tell, styles)
    if not verdict.passed:
        return plan.ExportResult(verdict, tuple(explain(folder, verdict, checkpoint.root, job.tell)))
    parts = [GOLDEN_FOLDER, *([STYLE_FOLDER] if request.styles else []), *([PROMPTS_FILE] if recipe.prompts else [])]
    _remove_parts(folder, [*parts, *(name for one in entries for name in (one.file, one.data) if name)])
    return plan.ExportResult(verdict)


def seal(
    recipe: Recipe,
    checkpoint: Checkpoint,
    folder: Path,
    entries: tuple[ArtifactEntry, ...],
    drift: Drift | None,
    tell: Callable[[str], None] = print,
    styles: tuple[AddedLora, ...] = (),
) -> Verdict:
    """Turn artifacts and golden cases in ``folder`` into an export: add tokenizer and manifest, and verify it."""
    write_beside(recipe, checkpoint, folder, entries)
    if recipe.layout == "swift":
        check_bundle(folder, tuple(entry.file for entry in entries))
    entries = TARGETS[recipe.target].compile_contexts(recipe.npu, folder, entries, tell)
    manifest = dataclasses.replace(manifest_of(recipe, checkpoint, folder, entries, drift), styles=styles)
    write_manifest(manifest, folder)
    result = verify(folder, progress=tell)
    write_manifest(with_parity(manifest, result), folder)
    return result


def write_beside(recipe: Recipe, checkpoint: Checkpoint, folder: Path, entries: tuple[ArtifactEntry, ...]) -> None:
    """Write the files that an app reads beside the artifacts; ``folder`` has the golden cases."""
    if recipe.layout == "swift":
        write_bundle(checkpoint, folder, recipe.chunks is not None, recipe.prompts)
    if recipe.target == "coreai":
        write_assets(recipe, checkpoint, folder, entries)
    checkpoint.copy_tokenizers(folder)


def manifest_of(
    recipe: Recipe, checkpoint: Checkpoint, folder: Path, entries: tuple[ArtifactEntry, ...], drift: Drift | None
) -> Manifest:
    """Return the manifest of an export in ``folder``, without the metrics of its verification."""
    family = graph_of(checkpoint.config)
    return Manifest(
        schema=SCHEMA,
        md_export=__version__,
        target=recipe.target,
        recipe=recipe,
        checkpoint_sha256=checkpoint.sha256(),
        golden_sha256=read_golden(folder / GOLDEN_FOLDER).sha256,
        tools=tools_of(recipe.target, family.form.libraries),
        one_step=one_step(checkpoint.config),
        artifacts=entries,
        drift=drift,
        files=files_beside(folder, entries),
        checkpoint_files=checkpoint.file_hashes(),
        steps=steps_of(checkpoint.config, recipe.sampler),
        loras=added_loras(checkpoint),
        schedule=checkpoint.config.schedule.noise() if family.encoded.node in recipe.components else None,
        family=family.form.name,
        zeros_for_empty=checkpoint.config.zeros_for_empty,
    )


def _remove_parts(folder: Path, names: list[str]) -> None:
    for name in names:
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
        else:
            (folder / name).unlink()
