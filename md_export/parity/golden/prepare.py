"""The golden cases that an export is calibrated on and judged by, and the drift of function-changing rewrites."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import nn

from md_export.checkpoint import Checkpoint
from md_export.errors import GoldenError
from md_export.models.families import WIRING, family_of
from md_export.models.sampling.generate import Pipeline
from md_export.models.sampling.one_step import one_step
from md_export.models.sampling.sampler import steps_of
from md_export.models.torch_runner import OneAtATime, TorchRunner
from md_export.models.walk import Runners
from md_export.parity.golden.case import GoldenCase
from md_export.parity.golden.folder import INDEX, GoldenSet, read_case, read_golden, read_index
from md_export.parity.golden.record import GoldenSource, write_golden
from md_export.parity.lora_fusing import check_fusing
from md_export.parity.metrics import compare
from md_export.rewrites import Consent, apply_rewrites, find_rewrite
from md_export.spec.artifact import GOLDEN_FOLDER
from md_export.spec.manifest import Drift
from md_export.spec.recipe import Recipe
from md_export.spec.sampler import SamplerPlan, steps_in_words
from md_export.spec.tensors import Array

Progress = Callable[[str], None]


def golden_source(
    checkpoint: Checkpoint,
    rewrites: tuple[str, ...] = (),
    allow_drift: bool = False,
    sampler: SamplerPlan | None = None,
    encodes: bool = False,
) -> GoldenSource:
    """The checkpoint's torch components, with the rewrites that change the function applied; one in memory at a time.

    ``encodes``: the VAE encoder among them, also where the UNet does not need it.

    Raises:
        RewriteError: a rewrite is refused.
    """
    step, consent = one_step(checkpoint.config), Consent(checkpoint.trained_substitutions, allow_drift)
    # Golden cases show the function; rewrites that only change the form have no place in them.
    changing = tuple(name for name in rewrites if not find_rewrite(name).exact)

    def changed(name: str) -> tuple[nn.Module, tuple[str, ...]]:
        module = checkpoint.module(name)
        records = apply_rewrites(changing, name, module, step, consent)
        return module, tuple(record.name for record in records if record.fired)

    config, family = checkpoint.config, family_of(checkpoint.config)
    applied = [fired for row in family.required for fired in changed(row.name)[1]] if changing else []
    runners = OneAtATime(family, lambda name: TorchRunner(name, changed(name)[0], config))
    return GoldenSource(
        Pipeline(
            family,
            family.of(checkpoint.components),
            Runners(runners),
            tokenizer_dir=checkpoint.tokenizer_dir,
            text_length=config.text_shape[1],
            latent_shape=config.latent_shape,
            downscale=config.vae.downscale,
            inpaints=config.inpaints,
            one_step=step,
            steps=steps_of(config, sampler),
            schedule=config.schedule,
        ),
        checkpoint_sha256=checkpoint.sha256(),
        rewrites=tuple(applied),
        encodes=encodes,
        condition_channels=config.condition_shape[1] if config.condition_shape else 0,
    )


def prepare_golden(
    recipe: Recipe, checkpoint: Checkpoint, given: Path | None, folder: Path, progress: Progress
) -> Drift | None:
    """Fill ``folder`` with golden cases of what the artifacts must compute.

    They are ``given``, else the ``golden/`` folder of the checkpoint, else made from the recipe's prompts; where that
    folder is of pictures of another size, from its own prompts. Where a rewrite changes the function they
    are made anew with it, and the drift from the former is returned.

    Raises:
        GoldenError: the cases belong to another checkpoint, or those given are of pictures of another size.
        RewriteError: a rewrite is refused.
        ParityError: LoRAs in the weights do not compute what they compute beside them.
    """
    checkpoint = checkpoint.at(recipe.size)
    changed = (
        golden_source(checkpoint, recipe.rewrites, recipe.allow_drift, recipe.sampler, recipe.encodes)
        if recipe.rewrites
        else None
    )
    if changed is None or not changed.rewrites:
        check_fusing(checkpoint, _place_golden(recipe, checkpoint, given, folder, progress).cases[0], progress)
        return None
    with tempfile.TemporaryDirectory(prefix="md-export-") as scratch:
        before = _place_golden(recipe, checkpoint, given, Path(scratch) / "golden", progress)
        check_fusing(checkpoint, before.cases[0], progress)
        folder.mkdir()
        write_golden(changed, [(case.prompt, case.seed) for case in before.cases], folder, progress)
        return measure_drift(before, read_golden(folder))


def _place_golden(
    recipe: Recipe, checkpoint: Checkpoint, given: Path | None, folder: Path, progress: Progress
) -> GoldenSet:
    """Golden cases of the checkpoint as it is: copied where there are some, else computed."""
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
            f"{checkpoint.sha256()[:12]}); make them anew with: md-export golden {checkpoint.title} -o DIR"
        )
    folder.mkdir()
    for name in (INDEX, *(item.file for item in golden.index.cases)):
        shutil.copyfile(present / name, folder / name)
    return golden


def present_golden(
    checkpoint: Checkpoint, given: Path | None, sampler: SamplerPlan | None = None, encodes: bool = False
) -> Path | None:
    """The folder of golden cases that serve ``checkpoint`` as it is, its pictures' size included; None: make some.

    ``encodes``: they must hold what the VAE encoder makes of a picture.

    Raises:
        GoldenError: those ``given`` are of pictures of another size, were sampled otherwise, or hold nothing of the
            encoder.
    """
    own = checkpoint.root / GOLDEN_FOLDER
    present = given or (own if own.is_dir() else None)
    if present is None:
        return None
    index = read_index(present)
    if index.steps != steps_of(checkpoint.config, sampler):
        if given is None:
            return None
        flags = f"--steps {sampler.steps} --guidance {sampler.guidance:g} " if sampler else ""
        raise GoldenError(
            f"{given} holds golden cases of {steps_in_words(index.steps)}, which are not the recipe's; make some with: "
            f"md-export golden {checkpoint.title} {flags}-o DIR"
        )
    case, encoder = read_case(present, index.cases[0]), family_of(checkpoint.config).encoded
    found = case.latent_sides
    lacks = (encodes or checkpoint.config.inpaints) and encoder.key not in case.values
    if found == checkpoint.config.latent_shape[2:] and not lacks:
        return present
    if given is None:
        return None
    if lacks:
        raise GoldenError(
            f"{given} holds golden cases without what the VAE encoder makes of a picture; make some with: md-export "
            f"golden {checkpoint.title} {'' if checkpoint.config.inpaints else '--encoder '}-o DIR"
        )
    size, scale = checkpoint.config.image_size, checkpoint.config.vae.downscale
    raise GoldenError(
        f"{given} holds golden cases of pictures of {found[1] * scale} × {found[0] * scale} pixels, which cannot judge "
        f"artifacts for {size} × {size}; make some with: md-export golden {checkpoint.title} --size {size} -o DIR"
    )


def planned_cases(recipe: Recipe, checkpoint: Checkpoint) -> list[tuple[str, int]]:
    """Those of the checkpoint's own cases, or of its parent's: its language; else the recipe's.

    Of many steps, as many of them as the recipe's sampler says.
    """
    return _known_cases(recipe, checkpoint)[: recipe.sampler.cases if recipe.sampler else None]


def _known_cases(recipe: Recipe, checkpoint: Checkpoint) -> list[tuple[str, int]]:
    for root in checkpoint.folders:
        if (root / GOLDEN_FOLDER).is_dir():
            return [(case.prompt, case.seed) for case in read_index(root / GOLDEN_FOLDER).cases]
    return [(prompt, seed) for prompt in recipe.golden.prompts for seed in recipe.golden.seeds]


def measure_drift(before: GoldenSet, after: GoldenSet) -> Drift:
    """Worst figures over all cases of the UNet's output and of the picture, ``before`` being the reference."""
    pairs = list(zip(before.cases, after.cases, strict=True))
    return Drift(
        unet_snr_db=min(compare(_denoised(new), _denoised(old)).snr_db for old, new in pairs),
        picture_psnr_db=min(compare(new.picture, old.picture).psnr_db for old, new in pairs),
    )


def _denoised(case: GoldenCase) -> Array:
    """Return what the UNet gave in all calls that a case holds."""
    output = WIRING.denoised
    return np.concatenate([call.output(output.node, output.name) for call in case.calls(output.node)])
