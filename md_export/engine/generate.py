"""Generation of pictures from prompts, by torch or by exported artifacts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from md_export.checkpoint import open_checkpoint
from md_export.engine.runnable_export import Export, Frame, frame_of, open_to_run
from md_export.errors import ArtifactError, UsageError
from md_export.models.families import WIRING
from md_export.models.sampling.generate import PictureRequest, Pipeline
from md_export.models.sampling.pictures import Given, Start
from md_export.models.sampling.schedule import ScheduleConfig
from md_export.models.values import LAST, MADE, TIMESTEP
from md_export.parity.golden.prepare import golden_source
from md_export.spec.sampler import SamplerPlan
from md_export.spec.tensors import Array, Float32

# A prompt and a seed.
Request = tuple[str, int]


def pictures_of_artifacts(
    out: Path,
    requests: Sequence[Request],
    given: Sequence[Given] | None = None,
    conditions: Sequence[Array] | None = None,
    starts: Sequence[Start] | None = None,
) -> list[Float32]:
    """Return one ``[H, W, 3]`` picture in [0, 1] per request; the target's runtime runs every component.

    Args:
        out: folder of the export.
        requests: prompts and seeds.
        given: one picture per request to in-paint; the part that is not hidden is kept.
        conditions: one condition per request for the adapter or the ControlNet; without conditions it has no effect.
        starts: one picture per request to start from instead of pure noise; all with the same strength.

    Raises:
        ArtifactError: the export lacks a component.
        RuntimeFault: an artifact does not run.
        UsageError: ``given`` for a UNet that takes many steps and has no inputs for in-painting, or ``starts`` for a
            UNet with one fixed timestep, which can only start from pure noise.
    """
    export = open_to_run(out)
    if conditions is not None:
        frame_of(export).require_condition()
    if starts is not None:
        _check_start(export, starts)
    pipeline = _pipeline(export)
    if conditions is None:
        pipeline = dataclasses.replace(pipeline, recorded=export.neutral)
    return _pictures(pipeline, requests, given, conditions, starts)


def _pipeline(export: Export) -> Pipeline:
    manifest, noise = export.manifest, export.manifest.schedule
    kind = manifest.one_step.prediction_type
    schedule = None if noise is None else ScheduleConfig(**dataclasses.asdict(noise), prediction_type=kind)
    first, *_ = WIRING.components
    return Pipeline(
        WIRING,
        WIRING.of(export.entries),
        export,
        tokenizer_dir=export.out / "tokenizer",
        text_length=export.entries[first.name].inputs[0].shape[1],
        latent_shape=export.latent_shape,
        downscale=export.downscale,
        inpaints=export.inpaints,
        one_step=manifest.one_step,
        steps=manifest.steps,
        schedule=schedule,
    )


def _check_start(export: Export, starts: Sequence[Start]) -> None:
    """Check that the export can start from a picture.

    Raises:
        UsageError: the UNet contains a single fixed timestep, and a strength below 1 needs another.
        ArtifactError: the export has no VAE encoder, or its manifest has no noise schedule.
    """
    unet = export.entries[WIRING.denoised.node]
    folded = unet.outputs[0].name == LAST.name or TIMESTEP.name not in {spec.name for spec in unet.inputs}
    if folded and export.manifest.steps is None and any(start.strength < 1 for start in starts):
        raise UsageError(
            f"{export.out}: its UNet holds the one timestep {export.manifest.one_step.timestep} (fold_timestep or "
            "fold_x0), and a --strength below 1 starts at another; export without these rewrites"
        )
    export.entry(WIRING.encoded.node)
    if export.manifest.schedule is None:
        raise ArtifactError(f"{export.out} does not say how much noise a timestep has; export again with --encoder")


def pictures_of_checkpoint(
    checkpoint_dir: Path,
    requests: Sequence[Request],
    size: int | None = None,
    sampler: SamplerPlan | None = None,
    given: Sequence[Given] | None = None,
    conditions: Sequence[Array] | None = None,
    starts: Sequence[Start] | None = None,
) -> list[Float32]:
    """Return one ``[H, W, 3]`` picture in [0, 1] per request, computed by torch in float32.

    ``requests``, ``given``, ``conditions``, ``starts``: as for :func:`pictures_of_artifacts`.

    Raises:
        UsageError: the checkpoint does not support pictures with sides of ``size`` pixels, or ``given`` is used with
            many steps and the UNet has no inputs for in-painting.
    """
    checkpoint = open_checkpoint(checkpoint_dir).at(size)
    if conditions is not None:
        Frame(checkpoint_dir, checkpoint.config.image_size, checkpoint.config.condition_shape).require_condition()
    pipeline = golden_source(checkpoint, sampler=sampler).pipeline
    return _pictures(pipeline, requests, given, conditions, starts)


def _pictures(
    pipeline: Pipeline,
    requests: Sequence[Request],
    given: Sequence[Given] | None,
    conditions: Sequence[Array] | None,
    starts: Sequence[Start] | None,
) -> list[Float32]:
    none = [None] * len(requests)
    rows = zip(requests, given or none, conditions or none, starts or none, strict=True)
    asked = [PictureRequest(*pair, one, condition, start) for pair, one, condition, start in rows]
    return [values[MADE.key].astype(np.float32, copy=False) for values in pipeline.values(asked)]
