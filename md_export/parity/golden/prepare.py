"""Prepare golden cases to calibrate and verify an export; measure the drift of function-changing rewrites."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np
from torch import nn

from md_export.checkpoint import Checkpoint
from md_export.errors import GoldenError, RecipeError
from md_export.models.families import family_of, graph_of
from md_export.models.sampling.generate import OneAtATime, Pipeline
from md_export.models.sampling.sampler import one_step, steps_of
from md_export.models.tokenizers import LABELS_FOLDER, read_labels
from md_export.models.walk import Runners
from md_export.parity.golden.case import GoldenCase
from md_export.parity.golden.folder import (
    INDEX,
    GoldenSet,
    GoldenSource,
    add_cases,
    read_case,
    read_golden,
    read_index,
    write_golden,
)
from md_export.parity.lora_fusing import check_fusing
from md_export.parity.metrics import compare
from md_export.rewrites import Consent, apply_rewrites, find_rewrite
from md_export.spec.artifact import GOLDEN_FOLDER
from md_export.spec.calibration import CalibrationPlan
from md_export.spec.manifest import Drift
from md_export.spec.names import whole_of
from md_export.spec.recipe import Recipe
from md_export.spec.sampler import SamplerPlan, flags_of, steps_in_words
from md_export.spec.tensors import Array
from md_export.spec.variant import size_in_words
from md_export.system.workspace import scratch_folder

Progress = Callable[[str], None]
# Golden cases of each style.
STYLE_CASES: Final = 2


def golden_source(
    checkpoint: Checkpoint,
    rewrites: tuple[str, ...] = (),
    allow_drift: bool = False,
    sampler: SamplerPlan | None = None,
    encodes: bool = False,
) -> GoldenSource:
    """Return a source of golden cases: the checkpoint's torch components with the function-changing rewrites applied.

    One component is in memory at a time. ``encodes``: include the VAE encoder even if the UNet does not need it.

    Raises:
        RewriteError: a rewrite is refused.
    """
    step, consent = one_step(checkpoint.config), Consent(checkpoint.trained_substitutions, allow_drift)
    # Golden cases depend only on the function, so rewrites that preserve it are left out.
    changing = tuple(name for name in rewrites if not find_rewrite(name).exact)

    def changed(name: str) -> tuple[nn.Module, tuple[str, ...]]:
        module = checkpoint.module(name)
        records = apply_rewrites(changing, whole_of(name), module, step, consent)
        return module, tuple(record.name for record in records if record.fired)

    config, family = checkpoint.config, graph_of(checkpoint.config)
    applied = [fired for row in family_of(config).required for fired in changed(row.name)[1]] if changing else []
    runners = OneAtATime(family, lambda name: changed(name)[0], config)
    return GoldenSource(
        Pipeline(
            family,
            family.of(checkpoint.components),
            Runners(runners),
            tokenizers=checkpoint.tokenizers,
            text_length=config.text_shape[1],
            latent_shape=config.latent_shape,
            downscale=config.vae.downscale,
            inpaints=config.inpaints,
            edits=config.edits,
            one_step=step,
            steps=steps_of(config, sampler),
            schedule=config.schedule,
            zeros_for_empty=config.zeros_for_empty,
        ),
        checkpoint_sha256=checkpoint.sha256(),
        rewrites=tuple(applied),
        encodes=encodes,
        condition_channels=config.condition_shape[1] if config.condition_shape else 0,
        clip_skip=config.variant.clip_skip,
    )


def prepare_golden(
    recipe: Recipe, checkpoint: Checkpoint, given: Path | None, folder: Path, progress: Progress
) -> Drift | None:
    """Fill ``folder`` with golden cases of what the artifacts must compute.

    The cases come from ``given``, else from the checkpoint's ``golden/`` folder, else they are computed for the
    recipe's prompts. If the checkpoint's folder holds pictures of another size, new cases are computed for that
    folder's prompts. If a rewrite changes the function, the cases are computed again with it, and their drift from
    the former ones is returned.

    Raises:
        GoldenError: the cases belong to another checkpoint, or ``given`` holds pictures of another size.
        RewriteError: a rewrite is refused.
        ParityError: LoRAs fused into the weights do not compute the same as LoRAs beside them.
    """
    checkpoint = checkpoint.at(recipe.variant)
    changed = (
        golden_source(checkpoint, recipe.rewrites, recipe.allow_drift, recipe.sampler, recipe.encodes)
        if recipe.rewrites
        else None
    )
    if changed is None or not changed.rewrites:
        check_fusing(checkpoint, _place_golden(recipe, checkpoint, given, folder, progress).cases[0], progress)
        return None
    with scratch_folder() as scratch:
        before = _place_golden(recipe, checkpoint, given, scratch / "golden", progress)
        check_fusing(checkpoint, before.cases[0], progress)
        folder.mkdir()
        write_golden(changed, [(case.prompt, case.seed) for case in before.cases], folder, progress)
        return measure_drift(before, read_golden(folder))


def add_style(recipe: Recipe, checkpoint: Checkpoint, style: str, folder: Path, progress: Progress) -> None:
    """Add golden cases of ``checkpoint``, which has a style fused in, with the first prompts of those in ``folder``.

    Raises:
        GoldenError: the checkpoint computes NaN or Inf with the style.
    """
    pairs = [(case.prompt, case.seed) for case in read_index(folder).cases if case.style is None][:STYLE_CASES]
    checkpoint = checkpoint.at(recipe.variant)
    source = golden_source(checkpoint, recipe.rewrites, recipe.allow_drift, recipe.sampler, recipe.encodes)
    add_cases(source, pairs, folder, style, progress)


def _place_golden(
    recipe: Recipe, checkpoint: Checkpoint, given: Path | None, folder: Path, progress: Progress
) -> GoldenSet:
    """Place golden cases of the unchanged checkpoint in ``folder``: copied if suitable ones exist, else computed."""
    present = present_golden(checkpoint, given, recipe.sampler, recipe.encodes)
    if present is None:
        folder.mkdir()
        source = golden_source(checkpoint, sampler=recipe.sampler, encodes=recipe.encodes)
        write_golden(source, planned_cases(recipe, checkpoint), folder, progress)
        return read_golden(folder)
    golden = read_golden(present)
    if golden.index.checkpoint_sha256 != checkpoint.sha256():
        raise GoldenError(
            f"{present} holds golden cases of another checkpoint ({golden.index.checkpoint_sha256[:12]}, this one is "
            f"{checkpoint.sha256()[:12]}); make new ones with: md-export golden {checkpoint.title} -o DIR"
        )
    folder.mkdir()
    for name in (INDEX, *(item.file for item in golden.index.cases)):
        shutil.copyfile(present / name, folder / name)
    return golden


def present_golden(
    checkpoint: Checkpoint, given: Path | None, sampler: SamplerPlan | None = None, encodes: bool = False
) -> Path | None:
    """Return the folder of golden cases that fit the unchanged ``checkpoint`` and its picture size; None: compute some.

    ``encodes``: the cases must hold the VAE encoder's output for a picture.

    Raises:
        GoldenError: the cases in ``given`` have pictures of another size, were sampled differently, or lack the
            encoder's output.
    """
    own = checkpoint.root / GOLDEN_FOLDER
    present = given or (own if own.is_dir() else None)
    if present is None:
        return None
    index = read_index(present)
    if index.steps != steps_of(checkpoint.config, sampler):
        if given is None:
            return None
        flags = flags_of(sampler)
        raise GoldenError(
            f"{given} holds golden cases of {steps_in_words(index.steps)}, which are not the recipe's; make some with: "
            f"md-export golden {checkpoint.title} {flags}-o DIR"
        )
    variant, wanted = checkpoint.config.variant, one_step(checkpoint.config).timestep
    if (index.clip_skip or 0, index.one_step.timestep) != (variant.clip_skip, wanted):
        if given is None:
            return None
        raise GoldenError(
            f"{given} holds golden cases of another timestep or clip_skip than the recipe's; make some with: md-export "
            f"golden {checkpoint.title} {variant.flags}-o DIR"
        )
    if index.family.partition(":")[2] != graph_of(checkpoint.config).form.name.partition(":")[2]:
        if given is None:
            return None
        raise GoldenError(
            f"{given} holds golden cases of other chunks than the recipe's; make some with: md-export golden "
            f"{checkpoint.title} {variant.flags}-o DIR"
        )
    case = read_case(present, index.cases[0], index.family)
    encoder = family_of(checkpoint.config).encoded
    found = case.latent_sides
    lacks = (encodes or checkpoint.config.takes_picture) and encoder.key not in case.values
    if found == checkpoint.config.latent_shape[2:] and not lacks:
        return present
    if given is None:
        return None
    if lacks:
        raise GoldenError(
            f"{given} holds golden cases without what the VAE encoder makes of a picture; make some with: md-export "
            f"golden {checkpoint.title} {'' if checkpoint.config.takes_picture else '--encoder '}-o DIR"
        )
    (height, width), scale = checkpoint.config.picture_shape, checkpoint.config.vae.downscale
    raise GoldenError(
        f"{given} holds golden cases of pictures of {found[1] * scale} × {found[0] * scale} pixels, which cannot judge "
        f"artifacts for {width} × {height}; make some with: md-export golden {checkpoint.title} "
        f"--size {size_in_words((width, height))} -o DIR"
    )


def planned_cases(recipe: Recipe, checkpoint: Checkpoint) -> list[tuple[str, int]]:
    """Return the (prompt, seed) pairs of the golden cases to compute for an export.

    They come from the checkpoint's golden cases or its parent's, because those prompts suit the model; else from the
    recipe. For many steps, the recipe's sampler limits their number.
    """
    limit = recipe.sampler.cases if recipe.sampler else None
    for root in checkpoint.folders:
        if (root / GOLDEN_FOLDER).is_dir():
            return [(case.prompt, case.seed) for case in read_index(root / GOLDEN_FOLDER).cases][:limit]
    prompts = recipe.golden.prompts
    if LABELS_FOLDER in checkpoint.tokenizers:
        # A class-conditional model: as many classes as the recipe has prompts.
        labels = read_labels(checkpoint.tokenizers[LABELS_FOLDER])
        prompts = tuple(labels.prompt(place * labels.count // len(prompts)) for place in range(len(prompts)))
    return [(prompt, seed) for prompt in prompts for seed in recipe.golden.seeds][:limit]


def measure_drift(before: GoldenSet, after: GoldenSet) -> Drift:
    """Return the worst SNR of the UNet's output and PSNR of the picture over all cases, against ``before``."""
    pairs = list(zip(before.cases, after.cases, strict=True))
    return Drift(
        unet_snr_db=min(compare(_denoised(new), _denoised(old)).snr_db for old, new in pairs),
        picture_psnr_db=min(compare(new.picture, old.picture).psnr_db for old, new in pairs),
    )


def _denoised(case: GoldenCase) -> Array:
    """Return the UNet's outputs in all calls that a case holds, as one array."""
    output = case.graph.denoised
    return np.concatenate([call.output(output.node, output.name) for call in case.calls(output.node)])


@contextmanager
def calibration_cases(
    recipe: Recipe, checkpoint: Checkpoint, golden: Path, scratch: Path, progress: Progress
) -> Iterator[Path | None]:
    """Compute the cases of the recipe's ``[calibration]`` in a temporary folder in ``scratch``.

    The checkpoint's chain text encoder → UNet → decoder computes them, with the function-changing rewrites.

    Args:
        golden: folder of the golden cases; their prompts are used if the plan has none.

    Yields:
        the folder; None if the recipe has no plan or needs no calibration.

    Raises:
        RecipeError: a calibration case is a golden case, too.
    """
    plan = recipe.calibration if needs_calibration(recipe) else None
    if plan is None:
        yield None
        return
    judging = [(item.prompt, item.seed) for item in read_index(golden).cases]
    pairs = calibration_pairs(recipe.name, plan, judging)
    with tempfile.TemporaryDirectory(prefix=".calibration-", dir=scratch) as name:
        source = golden_source(
            checkpoint.at(recipe.variant), recipe.rewrites, recipe.allow_drift, recipe.sampler, recipe.encodes
        )
        write_golden(source, pairs, Path(name), progress, use="calibration")
        yield Path(name)


def needs_calibration(recipe: Recipe) -> bool:
    """Whether the recipe needs calibration inputs."""
    schemes = [recipe.schemes[name] for name in recipe.components]
    return any(scheme.is_static or scheme.is_adjusted for scheme in schemes)


def calibration_pairs(name: str, plan: CalibrationPlan, golden: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    """Return prompt and seed of each calibration case; ``golden``: prompt and seed of each golden case.

    Raises:
        RecipeError: a calibration case is a golden case, too.
    """
    prompts = plan.prompts or tuple(dict.fromkeys(prompt for prompt, _ in golden))
    pairs = [(prompt, seed) for seed in plan.seeds for prompt in prompts]
    judging = set(golden).intersection(pairs)
    if judging:
        prompt, seed = min(judging)
        raise RecipeError(
            f"recipe {name}: [calibration] seed {seed} with the prompt {prompt!r:.60} is a golden case, too, "
            "and artifacts must not be verified on the inputs of their calibration; give other seeds"
        )
    return pairs
