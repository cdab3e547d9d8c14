"""Pictures for prompts, by torch or by exported artifacts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from md_export.checkpoint import open_checkpoint
from md_export.engine.runnable_export import Export, Frame, frame_of, open_to_run
from md_export.errors import ArtifactError, UsageError
from md_export.models.adapter import RESIDUAL
from md_export.models.sampling.denoising import start_of
from md_export.models.sampling.generate import Float32, draw_noise, encode, picture_from, tokenize
from md_export.models.sampling.image_to_image import Entry, Start, enter
from md_export.models.sampling.inpainting import Given, around_of, blend, cells_of, hide, nothing, with_around
from md_export.models.sampling.schedule import ScheduleConfig
from md_export.parity.chain import latent_of
from md_export.parity.golden.prepare import golden_source
from md_export.parity.golden.record import GoldenSource
from md_export.spec.names import ADAPTER, CONTROLNET
from md_export.spec.sampler import SamplerPlan
from md_export.spec.tensors import Array, Arrays
from md_export.targets.execution import walk

Request = tuple[str, int]


def pictures_of_artifacts(
    out: Path,
    requests: Sequence[Request],
    given: Sequence[Given] | None = None,
    conditions: Sequence[Array] | None = None,
    starts: Sequence[Start] | None = None,
) -> list[Float32]:
    """One ``[H, W, 3]`` picture in [0, 1] for each (prompt, seed), every component run by its target's runtime.

    ``given``: for each, a picture of which what is not hidden is kept. ``conditions``: for each, what an adapter or a
    ControlNet takes; without them it adds nothing. ``starts``: for each, a picture in place of noise alone; all with
    the same strength.

    Raises:
        ArtifactError: the export lacks a component.
        RuntimeFault: an artifact does not run.
        UsageError: its UNet takes many steps and cannot in-paint, or one step from noise alone.
    """
    export = open_to_run(out)
    if given is None and export.inpaints:
        given = [nothing(export.image_side, export.image_side)] * len(requests)
    if given is not None and export.manifest.ddim is not None and not export.inpaints:
        raise UsageError(_NO_BLEND)
    noises = [draw_noise(seed, export.latent_shape) for _, seed in requests]
    if starts is not None:
        export, noises = _from_pictures(export, starts, noises)
    latents = _latents(export, [text for text, _ in requests], noises, given, conditions)
    if given is not None and not export.inpaints:
        kept = export.run("vae_encoder", [{"image": one.image} for one in given])
        latents = [
            blend(latent, cells_of(one.mask, export.downscale), old)
            for latent, one, old in zip(latents, given, kept, strict=True)
        ]
    return [picture_from(image) for image in export.run("vae_decoder", [{"latent": latent} for latent in latents])]


_NO_BLEND = (
    "in many steps only a UNet that was trained for in-painting can keep a part of a picture; use one, or one step "
    "(leave out --steps, or export without it)"
)


def _from_pictures(export: Export, starts: Sequence[Start], noises: list[Float32]) -> tuple[Export, list[Float32]]:
    """The export with the constants of what is left of its steps, and what these start from."""
    manifest, strength = export.manifest, _strength(starts)
    if manifest.ddim is None and strength < 1:
        _check_timestep(export)
    kept = export.run("vae_encoder", [{"image": one.image} for one in starts])
    if manifest.schedule is None:
        raise ArtifactError(f"{export.out} does not say how much noise a timestep has; export again with --encoder")
    schedule = ScheduleConfig(
        **dataclasses.asdict(manifest.schedule), prediction_type=manifest.one_step.prediction_type
    )
    entry = enter(schedule, manifest.one_step, manifest.ddim, strength)
    entered = dataclasses.replace(manifest, one_step=entry.one_step, ddim=entry.ddim)
    latents = [entry.noised(latent, noise) for latent, noise in zip(kept, noises, strict=True)]
    return dataclasses.replace(export, manifest=entered), latents


def _check_timestep(export: Export) -> None:
    """Raise :class:`UsageError` where one step can begin nowhere but at the schedule's end."""
    unet = export.entries["unet"]
    if unet.outputs[0].name == "latent" or "timestep" not in {spec.name for spec in unet.inputs}:
        raise UsageError(
            f"{export.out}: its UNet holds the one timestep {export.manifest.one_step.timestep} (fold_timestep or "
            "fold_x0), and a --strength below 1 starts at another; export without these rewrites"
        )


def _strength(starts: Sequence[Start]) -> float:
    """That of all; they share their steps."""
    (strength,) = {start.strength for start in starts}
    return strength


def _latents(
    export: Export,
    prompts: Sequence[str],
    noises: Sequence[Array],
    given: Sequence[Given] | None,
    conditions: Sequence[Array] | None,
) -> list[Array]:
    """What the decoder takes for each prompt, in one step or in many."""
    manifest, length = export.manifest, export.entries["text_encoder"].inputs[0].shape[1]
    texts = prompts if manifest.ddim is None else ["", *prompts]
    ids = [{"input_ids": tokenize(export.out / "tokenizer", text, length)} for text in texts]
    hidden = export.run("text_encoder", ids)
    around = _around(export, given) if export.inpaints and given is not None else [None] * len(noises)
    if manifest.ddim is not None:
        pairs = [np.concatenate([hidden[0], text]) for text in hidden[1:]]
        return _walked(export, noises, pairs, around, conditions)
    timestep = np.asarray([manifest.one_step.timestep], dtype=np.float32)
    plain: list[Arrays] = [
        {"sample": noise, "timestep": timestep, "encoder_hidden_states": text}
        for noise, text in zip(noises, hidden, strict=True)
    ]
    batches = [
        {**one, "sample": with_around(one["sample"], beside), **added}
        for one, beside, added in zip(plain, around, _residuals(export, conditions, plain), strict=True)
    ]
    outputs = export.run("unet", batches)
    return [latent_of(manifest, noise, made) for noise, made in zip(noises, outputs, strict=True)]


def _walked(
    export: Export,
    noises: Sequence[Array],
    texts: Sequence[Array],
    around: Sequence[Array | None],
    conditions: Sequence[Array] | None,
) -> list[Array]:
    """As :func:`_latents`, in many steps."""
    manifest = export.manifest
    assert manifest.ddim is not None  # noqa: S101 (asked by whoever calls)
    controls = conditions is not None and CONTROLNET in export.entries
    added = [{}] * len(noises) if controls else _residuals(export, conditions, [{}] * len(noises))
    seen = conditions if controls and conditions else [None] * len(noises)
    starts = [start_of(*each) for each in zip(noises, texts, around, added, seen, strict=True)]
    control = export.path(CONTROLNET) if controls else None
    return walk(manifest.target, export.path("unet"), starts, manifest.ddim, control).latents


def _residuals(export: Export, conditions: Sequence[Array] | None, given: Sequence[Arrays]) -> Sequence[Arrays]:
    """What is added to the UNet's maps for each picture; ``given``: what the UNet takes, and a ControlNet, too."""
    if conditions is None:
        taken = [spec for spec in export.entries["unet"].inputs if spec.name.startswith(RESIDUAL)]
        return [{spec.name: spec.zeros()[:1] for spec in taken}] * len(given)
    frame_of(export).require_condition()
    name = ADAPTER if ADAPTER in export.entries else CONTROLNET
    seen = [{**one, "condition": condition} for one, condition in zip(given, conditions, strict=True)]
    return export.outputs(name, seen)


def _around(export: Export, given: Sequence[Given]) -> list[Array | None]:
    """What a UNet that in-paints takes beside the noise."""
    shown = export.run("vae_encoder", [{"image": hide(one.image, one.mask)} for one in given])
    scale = export.manifest.one_step.scaling_factor
    return [
        around_of(cells_of(one.mask, export.downscale), latent, scale) for one, latent in zip(given, shown, strict=True)
    ]


def pictures_of_checkpoint(
    checkpoint_dir: Path,
    requests: Sequence[Request],
    size: int | None = None,
    sampler: SamplerPlan | None = None,
    given: Sequence[Given] | None = None,
    conditions: Sequence[Array] | None = None,
    starts: Sequence[Start] | None = None,
) -> list[Float32]:
    """One ``[H, W, 3]`` picture in [0, 1] for each (prompt, seed), computed by torch in float32.

    ``given``, ``conditions``, ``starts``: as for :func:`pictures_of_artifacts`.

    Raises:
        UsageError: the checkpoint cannot make pictures of ``size`` pixels a side, or keep a part of one in many steps.
    """
    checkpoint = open_checkpoint(checkpoint_dir).at(size)
    if given is not None and sampler is not None and not checkpoint.config.inpaints:
        raise UsageError(_NO_BLEND)
    if conditions is not None:
        Frame(checkpoint_dir, checkpoint.config.image_size, checkpoint.config.condition_shape).require_condition()
    source, none = golden_source(checkpoint, sampler=sampler), [None] * len(requests)
    noises: Sequence[Array | None] = none
    if starts is not None:
        entry = enter(checkpoint.config.schedule, source.one_step, source.ddim, _strength(starts))
        source = dataclasses.replace(source, one_step=entry.one_step, ddim=entry.ddim)
        noises = [_noised(source, entry, start, seed) for start, (_, seed) in zip(starts, requests, strict=True)]
    made = [
        source.painted(*request, one, condition, noise)
        for request, one, condition, noise in zip(requests, given or none, conditions or none, noises, strict=True)
    ]
    return [np.asarray(values.picture, dtype=np.float32) for values in made]


def _noised(source: GoldenSource, entry: Entry, start: Start, seed: int) -> Float32:
    return entry.noised(encode(source.runners, start.image), draw_noise(seed, source.latent_shape))
