"""Make pictures from prompts with torch or with the artifacts of an export, one component after the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from md_export.checkpoint import open_checkpoint
from md_export.engine.runnable_export import Export, Frame, open_to_run
from md_export.engine.style import chosen_style
from md_export.errors import ArtifactError, UsageError
from md_export.models.sampling.advice import advice_on_steps
from md_export.models.sampling.generate import PictureRequest, Pipeline
from md_export.models.sampling.pictures import Given, Start
from md_export.models.sampling.schedule import ScheduleConfig
from md_export.models.tokenizers import words_cut
from md_export.models.values import LAST, MADE, TIMESTEP
from md_export.parity.golden.prepare import golden_source
from md_export.spec.artifact import shape_of_input
from md_export.spec.sampler import SamplerPlan
from md_export.spec.tensors import Array, Float32
from md_export.spec.variant import TRAINED, Variant


def frame_of_checkpoint(checkpoint_dir: Path, variant: Variant = TRAINED) -> Frame:
    """Return the dimensions of a checkpoint's pictures; raise UsageError if it does not support the variant."""
    config = open_checkpoint(checkpoint_dir).at(variant).config
    return Frame(checkpoint_dir, config.picture_shape, config.condition_shape)


Request = tuple[str, int]  # a prompt and a seed


def pictures_of_artifacts(
    out: Path,
    requests: Sequence[Request],
    given: Sequence[Given] | None = None,
    conditions: Sequence[Array] | None = None,
    starts: Sequence[Start] | None = None,
    negative: str | None = None,
    tell: Callable[[str], None] = lambda _: None,
    style: str | None = None,
) -> list[Float32]:
    """Return one ``[H, W, 3]`` picture in [0, 1] per request; the target's runtime runs every component.

    Args:
        out: folder of the export.
        requests: prompts and seeds.
        given: one picture and mask per request for in-painting; the area outside the mask is kept.
        conditions: one condition per request for the adapter or the ControlNet; without conditions it has no effect.
        starts: one picture per request to start from instead of pure noise; all with the same strength. An editing
            UNet gets the picture in addition to the noise, with any strength.
        negative: negative prompt for guidance; None for the empty prompt.
        tell: called with a message about a prompt that is too long.
        style: style of the export, as for :func:`md_export.engine.style.chosen_style`.

    Raises:
        ArtifactError: the export lacks a component.
        RuntimeFault: an artifact does not run.
        UsageError: a prompt that is not stored, for an export without text encoders; ``given`` in many steps for a UNet
            without inputs for in-painting; ``starts`` for a UNet with one fixed timestep, which can only start from
            pure noise; or ``negative`` without guidance.
    """
    export = open_to_run(out)
    if conditions is not None:
        export.frame.require_condition()
    if starts is not None and not export.edits:
        _check_start(export, starts)
    known = {} if style is None else chosen_style(out, export.manifest, style)
    pipeline = dataclasses.replace(
        _pipeline(export), recorded={**known, **(export.neutral if conditions is None else {})}
    )
    return _pictures(pipeline, requests, given, conditions, starts, negative, tell)


def _pipeline(export: Export) -> Pipeline:
    manifest, noise = export.manifest, export.manifest.schedule
    kind = manifest.one_step.prediction_type
    schedule = None if noise is None else ScheduleConfig(**dataclasses.asdict(noise), prediction_type=kind)
    family = export.family
    return Pipeline(
        family,
        family.of(export.entries),
        export,
        tokenizers={name: export.out / name for name in family.tokens},
        text_length=export.text_length,
        latent_shape=export.latent_shape,
        downscale=export.downscale,
        inpaints=export.inpaints,
        edits=export.edits,
        one_step=manifest.one_step,
        steps=manifest.steps,
        schedule=schedule,
        zeros_for_empty=manifest.zeros_for_empty,
        stored=export.stored,
    )


def _check_start(export: Export, starts: Sequence[Start]) -> None:
    """Check that the export can start from a picture.

    Raises:
        UsageError: the denoiser contains a single fixed timestep, and a strength below 1 needs another.
        ArtifactError: the export has no VAE encoder, or its manifest has no noise schedule.
    """
    is_fixed = shape_of_input(export.denoiser, TIMESTEP.name) is None
    folded = export.denoiser[-1].outputs[0].name == LAST.name or is_fixed
    if folded and export.manifest.steps is None and any(start.strength < 1 for start in starts):
        raise UsageError(
            f"{export.out}: its denoiser has the fixed timestep {export.manifest.one_step.timestep} "
            "(fold_timestep or fold_x0), and a --strength below 1 needs another; export without these rewrites"
        )
    export.entry(export.family.encoded.node)
    if export.manifest.schedule is None:
        raise ArtifactError(f"{export.out} has no noise schedule in its manifest; export again with --encoder")


def pictures_of_checkpoint(
    checkpoint_dir: Path,
    requests: Sequence[Request],
    variant: Variant = TRAINED,
    sampler: SamplerPlan | None = None,
    given: Sequence[Given] | None = None,
    conditions: Sequence[Array] | None = None,
    starts: Sequence[Start] | None = None,
    negative: str | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> list[Float32]:
    """Return one ``[H, W, 3]`` picture in [0, 1] per request, computed by torch in float32.

    ``requests``, ``given``, ``conditions``, ``starts``, ``negative``: as for :func:`pictures_of_artifacts`.
    ``tell``: called with a message about a prompt that is too long, or steps that the model was not trained for.

    Raises:
        UsageError: the checkpoint does not support the variant, or ``given`` is used in many steps for a UNet without
            inputs for in-painting.
    """
    checkpoint = open_checkpoint(checkpoint_dir).at(variant)
    if conditions is not None:
        Frame(checkpoint_dir, checkpoint.config.picture_shape, checkpoint.config.condition_shape).require_condition()
    for line in (advice_on_steps(checkpoint.config, sampler), *checkpoint.notes):
        if line:
            tell(line)
    pipeline = golden_source(checkpoint, sampler=sampler).pipeline
    return _pictures(pipeline, requests, given, conditions, starts, negative, tell)


def _pictures(
    pipeline: Pipeline,
    requests: Sequence[Request],
    given: Sequence[Given] | None,
    conditions: Sequence[Array] | None,
    starts: Sequence[Start] | None,
    negative: str | None,
    tell: Callable[[str], None],
) -> list[Float32]:
    if negative is not None and not (pipeline.steps and pipeline.steps.is_guided):
        raise UsageError("a negative prompt needs guidance: many steps with --guidance above 1")
    for prompt in dict.fromkeys([*(prompt for prompt, _ in requests), *([negative] if negative else [])]):
        cuts = [words_cut(folder, prompt, pipeline.text_length) for folder in pipeline.tokenizers.values()]
        if cut := next(filter(None, cuts), ""):
            tell(f"the prompt is longer than {pipeline.text_length} tokens; this is left out: {cut!r}")
    none = [None] * len(requests)
    rows = zip(requests, given or none, conditions or none, starts or none, strict=True)
    asked = [PictureRequest(*pair, one, condition, start, negative) for pair, one, condition, start in rows]
    if pipeline.edits:
        asked = [
            dataclasses.replace(one, start=None, edited=None if one.start is None else one.start.image) for one in asked
        ]
    return [values[MADE.key].astype(np.float32, copy=False) for values in pipeline.values(asked)]
