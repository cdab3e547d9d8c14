"""THE map: from a checkpoint folder to verified artifacts, in straight-line named stages."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

from md_export import __version__
from md_export.checkpoint import Checkpoint, open_checkpoint
from md_export.checkpoint.derived import adapted
from md_export.engine.artifact import BuildStep
from md_export.engine.coreai_bundle import write_assets
from md_export.engine.hops import explain
from md_export.engine.metadata import notes_of, steps_notes
from md_export.engine.swift_bundle import check_bundle, write_bundle
from md_export.errors import ConversionError, ParityError
from md_export.parity.golden.calibration import calibration_cases
from md_export.parity.golden.folder import read_golden
from md_export.parity.golden.prepare import ddim_of, one_step, prepare_golden, schedule_of
from md_export.parity.judge import verify
from md_export.parity.lora_fusing import added_loras
from md_export.parity.verdict import Verdict
from md_export.rewrites import find_rewrite
from md_export.spec.artifact import GOLDEN_FOLDER, ArtifactEntry, entry_from_dict
from md_export.spec.manifest import SCHEMA, Drift, Manifest, files_beside, write_manifest
from md_export.spec.recipe import Recipe
from md_export.system.files import refuse_existing, require_space, staging
from md_export.targets import TARGETS
from md_export.targets.layouts import layout_of
from md_export.targets.onnx.npu.process import compile_contexts
from md_export.targets.versions import tools_of
from md_export.worker.calling import call_worker

Progress = Callable[[str], None]


def export(
    recipe: Recipe, checkpoint_dir: Path, out: Path, golden_dir: Path | None = None, progress: Progress = print
) -> tuple[Manifest, Verdict]:
    """Checkpoint → artifacts, each executed by its own runtime and proved against golden outputs.

    ``out`` appears whole or not at all; what fails parity is kept beside it as ``<out>.rejected``.

    Raises:
        MdExportError: see :mod:`md_export.errors`; ParityError where an artifact falls short.
    """
    check_recipe(recipe)
    refuse_existing(out)
    with adapted(checkpoint_dir, recipe.loras) as folder:
        return _export(dataclasses.replace(recipe, loras=()), folder, out, golden_dir, progress)


def _export(
    recipe: Recipe, checkpoint_dir: Path, out: Path, golden_dir: Path | None, progress: Progress
) -> tuple[Manifest, Verdict]:
    checkpoint = open_checkpoint(checkpoint_dir).at(recipe.size)
    recipe = recipe.completed(checkpoint.components)
    checkpoint.check(recipe.components)
    require_space(out, 3 * sum(checkpoint.component_bytes(name) for name in recipe.components))
    with staging(out) as folder:
        drift = prepare_golden(recipe, checkpoint, golden_dir, folder / GOLDEN_FOLDER, progress)
        if recipe.layout == "swift":
            write_bundle(checkpoint, folder)
        entries = _build(recipe, checkpoint, folder, progress)
        manifest, result = seal(recipe, checkpoint, folder, entries, drift, progress)
        if not result.passed:
            _reject(folder, out, result, explain(folder, result, checkpoint.root, progress))
    return manifest, result


def check_recipe(recipe: Recipe) -> None:
    """Whether a recipe can be carried out here: the target's libraries, its rewrites, its layout.

    Raises:
        MdExportError: MissingExtraError, RewriteError or RecipeError.
    """
    TARGETS[recipe.target].require()
    for name in recipe.rewrites:
        find_rewrite(name)
    layout_of(recipe)


def seal(
    recipe: Recipe,
    checkpoint: Checkpoint,
    folder: Path,
    entries: tuple[ArtifactEntry, ...],
    drift: Drift | None,
    progress: Progress,
) -> tuple[Manifest, Verdict]:
    """Artifacts and golden cases in ``folder`` → an export: tokenizer and manifest beside them, and judged."""
    if recipe.layout == "swift":
        check_bundle(folder, tuple(entry.file for entry in entries))
    if recipe.target == "coreai":
        write_assets(recipe, checkpoint, folder, entries)
    entries = compile_contexts(recipe.npu, folder, entries, progress)
    checkpoint.copy_tokenizer(folder / "tokenizer")
    manifest = _manifest(recipe, checkpoint, folder, entries, drift)
    write_manifest(manifest, folder)
    result = verify(folder, progress=progress)
    manifest = with_parity(manifest, result)
    write_manifest(manifest, folder)
    return manifest, result


def _build(recipe: Recipe, checkpoint: Checkpoint, folder: Path, progress: Progress) -> tuple[ArtifactEntry, ...]:
    """One artifact per component, all calibrated on the same cases."""
    golden, notes, entries = folder / GOLDEN_FOLDER, notes_of(checkpoint), []
    steps = steps_notes(checkpoint, recipe.sampler)
    with calibration_cases(recipe, checkpoint, golden, folder, progress) as cases:
        for component in recipe.components:
            progress(f"{recipe.target}: {component} → {' and '.join(recipe.schemes[component].all_weights)}")
            step = BuildStep(checkpoint.root, component, recipe, golden, folder, notes[component] | steps, cases)
            answer = call_worker("build", step.to_dict(), ConversionError, f"{recipe.target} {component}")
            entries.append(entry_from_dict(answer))
    return tuple(entries)


def _manifest(
    recipe: Recipe, checkpoint: Checkpoint, folder: Path, entries: tuple[ArtifactEntry, ...], drift: Drift | None
) -> Manifest:
    return Manifest(
        schema=SCHEMA,
        md_export=__version__,
        target=recipe.target,
        recipe=recipe,
        checkpoint_sha256=checkpoint.sha256(),
        golden_sha256=read_golden(folder / GOLDEN_FOLDER).sha256,
        tools=tools_of(recipe.target, checkpoint.config.libraries),
        one_step=one_step(checkpoint.config),
        artifacts=entries,
        drift=drift,
        files=files_beside(folder, entries),
        checkpoint_files=checkpoint.file_hashes(),
        ddim=ddim_of(checkpoint.config, recipe.sampler),
        loras=added_loras(checkpoint),
        schedule=schedule_of(checkpoint.config) if "vae_encoder" in recipe.components else None,
    )


def with_parity(manifest: Manifest, result: Verdict) -> Manifest:
    """The manifest with the figures by which its artifacts and the picture were judged."""
    figures = {item.component: item.parity for item in result.components}
    entries = tuple(dataclasses.replace(entry, parity=figures[entry.component]) for entry in manifest.artifacts)
    picture = result.picture.psnr_db if result.picture else None
    return dataclasses.replace(manifest, artifacts=entries, picture_psnr_db=picture)


def _reject(folder: Path, out: Path, result: Verdict, hops: list[str]) -> None:
    kept = out.with_name(f"{out.name}.rejected")
    shutil.rmtree(kept, ignore_errors=True)
    folder.rename(kept)
    raise ParityError(
        "the export does not compute what the checkpoint computes: "
        + "; ".join([*hops, *result.failures])
        + f". {out} was not written; the rejected artifacts are in {kept}"
    )
