"""Pictures for prompts, by torch or by exported artifacts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from md_export.artifact import ArtifactEntry, Manifest, artifact_path, read_manifest
from md_export.checkpoint import open_checkpoint
from md_export.components.adapter import RESIDUAL
from md_export.errors import ArtifactError, OutputError, UsageError
from md_export.inpainting import Given, around_of, blend, cells_of, hide, nothing, with_around
from md_export.layouts import layout_of
from md_export.parity.chain import CHAIN, latent_of
from md_export.parity.prepare import golden_source
from md_export.sampler import SamplerPlan
from md_export.sampling import Float32, draw_noise, only_output, picture_from, start_of, tokenize
from md_export.tensors import Array, Arrays, select
from md_export.workers import execute, walk

Request = tuple[str, int]


def pictures_of_artifacts(
    out: Path,
    requests: Sequence[Request],
    given: Sequence[Given] | None = None,
    conditions: Sequence[Array] | None = None,
) -> list[Float32]:
    """One ``[H, W, 3]`` picture in [0, 1] for each (prompt, seed), every component run by its target's runtime.

    ``given``: for each, a picture of which what is not hidden is kept. ``conditions``: for each, what an adapter takes;
    without them it adds nothing.

    Raises:
        ArtifactError: the export lacks a component.
        RuntimeFault: an artifact does not run.
        UsageError: its UNet takes many steps and cannot in-paint.
    """
    export = _open(out)
    if given is None and export.inpaints:
        given = [nothing(export.image_side, export.image_side)] * len(requests)
    if given is not None and export.manifest.ddim is not None and not export.inpaints:
        raise UsageError(_NO_BLEND)
    shape = export.entries["vae_decoder"].inputs[0].shape
    noises = [draw_noise(seed, (1, *shape[1:])) for _, seed in requests]
    residuals = _residuals(export, conditions, len(requests))
    latents = _latents(export, [text for text, _ in requests], noises, given, residuals)
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


_NO_ADAPTER = (
    "this model takes no condition picture; give its checkpoint an adapter with md-export adapt CHECKPOINT --adapter "
    "FOLDER, and use or export that"
)


@dataclass(frozen=True)
class _Export:
    """An opened export and its artifacts by component."""

    out: Path
    manifest: Manifest
    entries: dict[str, ArtifactEntry]

    @property
    def inpaints(self) -> bool:
        """Whether its UNet takes a picture's latents beside the noise."""
        return self.entries["unet"].inputs[0].shape[1] > self.entries["vae_decoder"].inputs[0].shape[1]

    def check_adapter(self) -> None:
        """Raise :class:`UsageError` where nothing takes a condition picture."""
        if "t2i_adapter" not in self.entries:
            raise UsageError(f"{self.out}: {_NO_ADAPTER}")

    @property
    def image_side(self) -> int:
        """Of a picture, in pixels."""
        return self.entries["vae_decoder"].outputs[0].shape[-1]

    @property
    def downscale(self) -> int:
        """Pixels of a latent cell along a side."""
        return self.image_side // self.entries["vae_decoder"].inputs[0].shape[-1]

    def run(self, name: str, batches: Sequence[Arrays]) -> list[Array]:
        """One output for each set of inputs, under our names."""
        return [only_output(outputs) for outputs in self.outputs(name, batches)]

    def outputs(self, name: str, batches: Sequence[Arrays]) -> Sequence[Arrays]:
        """All outputs for each set of inputs."""
        if name not in self.entries:
            raise ArtifactError(f"{self.out} has no {name}; export it, too: md-export {self.manifest.target} --encoder")
        entry = self.entries[name]
        layout = layout_of(self.manifest.recipe)
        chosen = [select(layout.pack(name, batch), entry.inputs) for batch in batches]
        return execute(self.manifest.target, artifact_path(self.out, entry), chosen).outputs


def _open(out: Path) -> _Export:
    manifest = read_manifest(out)
    entries = {entry.component: entry for entry in manifest.artifacts}
    for name in CHAIN:
        if name not in entries:
            raise ArtifactError(f"{out} has no {name}; a picture needs all of {', '.join(CHAIN)}: export them all")
    return _Export(out, manifest, entries)


def _latents(
    export: _Export,
    prompts: Sequence[str],
    noises: Sequence[Array],
    given: Sequence[Given] | None,
    residuals: Sequence[Arrays],
) -> list[Array]:
    """What the decoder takes for each prompt, in one step or in many."""
    manifest, length = export.manifest, export.entries["text_encoder"].inputs[0].shape[1]
    texts = prompts if manifest.ddim is None else ["", *prompts]
    ids = [{"input_ids": tokenize(export.out / "tokenizer", text, length)} for text in texts]
    hidden = export.run("text_encoder", ids)
    around = _around(export, given) if export.inpaints and given is not None else [None] * len(noises)
    if manifest.ddim is not None:
        starts = [
            start_of(noise, np.concatenate([hidden[0], text]), beside, added)
            for noise, text, beside, added in zip(noises, hidden[1:], around, residuals, strict=True)
        ]
        return walk(manifest.target, artifact_path(export.out, export.entries["unet"]), starts, manifest.ddim).latents
    timestep = np.asarray([manifest.one_step.timestep], dtype=np.float32)
    batches = [
        {"sample": with_around(noise, beside), "timestep": timestep, "encoder_hidden_states": text, **added}
        for noise, beside, text, added in zip(noises, around, hidden, residuals, strict=True)
    ]
    outputs = export.run("unet", batches)
    return [latent_of(manifest, noise, made) for noise, made in zip(noises, outputs, strict=True)]


def _residuals(export: _Export, conditions: Sequence[Array] | None, count: int) -> Sequence[Arrays]:
    """What the UNet takes of an adapter for each picture."""
    if conditions is not None:
        export.check_adapter()
        return export.outputs("t2i_adapter", [{"condition": condition} for condition in conditions])
    taken = [spec for spec in export.entries["unet"].inputs if spec.name.startswith(RESIDUAL)]
    return [{spec.name: spec.zeros()[:1] for spec in taken}] * count


def _around(export: _Export, given: Sequence[Given]) -> list[Array | None]:
    """What a UNet that in-paints takes beside the noise."""
    shown = export.run("vae_encoder", [{"image": hide(one.image, one.mask)} for one in given])
    scale = export.manifest.one_step.scaling_factor
    return [
        around_of(cells_of(one.mask, export.downscale), latent, scale) for one, latent in zip(given, shown, strict=True)
    ]


def side_of_artifacts(out: Path) -> int:
    """Of the pictures that an export makes, in pixels; raises as :func:`pictures_of_artifacts`."""
    return _open(out).image_side


def side_of_checkpoint(checkpoint_dir: Path, size: int | None = None) -> int:
    """Of the pictures that a checkpoint makes, in pixels."""
    return open_checkpoint(checkpoint_dir).at(size).config.image_size


def condition_shape_of_artifacts(out: Path) -> tuple[int, ...]:
    """``[1, C, H, W]`` of the condition picture that an export takes; UsageError where it takes none."""
    export = _open(out)
    export.check_adapter()
    return export.entries["t2i_adapter"].inputs[0].shape


def condition_shape_of_checkpoint(checkpoint_dir: Path, size: int | None = None) -> tuple[int, ...]:
    """``[1, C, H, W]`` of the condition picture that a checkpoint takes; UsageError where it takes none."""
    config = open_checkpoint(checkpoint_dir).at(size).config
    if config.adapter is None:
        raise UsageError(f"{checkpoint_dir}: {_NO_ADAPTER}")
    return (1, config.adapter.in_channels, config.image_size, config.image_size)


def pictures_of_checkpoint(
    checkpoint_dir: Path,
    requests: Sequence[Request],
    size: int | None = None,
    sampler: SamplerPlan | None = None,
    given: Sequence[Given] | None = None,
    conditions: Sequence[Array] | None = None,
) -> list[Float32]:
    """One ``[H, W, 3]`` picture in [0, 1] for each (prompt, seed), computed by torch in float32.

    ``given``: for each, a picture of which what is not hidden is kept. ``conditions``: for each, what an adapter takes.

    Raises:
        UsageError: the checkpoint cannot make pictures of ``size`` pixels a side, or keep a part of one in many steps.
    """
    checkpoint = open_checkpoint(checkpoint_dir).at(size)
    if given is not None and sampler is not None and not checkpoint.config.inpaints:
        raise UsageError(_NO_BLEND)
    if conditions is not None and checkpoint.config.adapter is None:
        raise UsageError(f"{checkpoint_dir}: {_NO_ADAPTER}")
    source, none = golden_source(checkpoint, sampler=sampler), [None] * len(requests)
    made = [
        source.painted(*request, one, condition)
        for request, one, condition in zip(requests, given or none, conditions or none, strict=True)
    ]
    return [np.asarray(values.picture, dtype=np.float32) for values in made]


def write_png(path: Path, picture: Float32) -> None:
    """Write a ``[H, W, 3]`` picture in [0, 1] as PNG.

    Raises:
        OutputError: the picture holds NaN or Inf; a black file would hide it.
    """
    if not np.isfinite(picture).all():
        raise OutputError("the picture holds NaN or Inf and was not written; run md-export verify on the artifacts")
    if not path.parent.is_dir():
        raise OutputError(f"{path.parent} does not exist; create it first")
    Image.fromarray(to_bytes(picture)).save(path, format="PNG")


def to_bytes(picture: Float32) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """[0, 1] → 0…255, rounded."""
    return np.round(picture * 255.0).astype(np.uint8)
