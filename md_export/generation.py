"""Pictures for prompts, by torch or by exported artifacts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from md_export.artifact import ArtifactEntry, artifact_path, read_manifest
from md_export.checkpoint import open_checkpoint
from md_export.components import COMPONENTS
from md_export.errors import ArtifactError, OutputError
from md_export.layouts import layout_of
from md_export.parity.chain import latent_of, start_of
from md_export.parity.prepare import golden_source
from md_export.sampler import SamplerPlan
from md_export.sampling import Float32, draw_noise, only_output, picture_from, tokenize
from md_export.tensors import Array, Arrays, select
from md_export.workers import execute, walk

Request = tuple[str, int]


def pictures_of_artifacts(out: Path, requests: Sequence[Request]) -> list[Float32]:
    """One ``[H, W, 3]`` picture in [0, 1] for each (prompt, seed), every component run by its target's runtime.

    Raises:
        ArtifactError: the export lacks a component.
        RuntimeFault: an artifact does not run.
    """
    manifest = read_manifest(out)
    layout = layout_of(manifest.recipe)
    entries: dict[str, ArtifactEntry] = {entry.component: entry for entry in manifest.artifacts}
    for name in COMPONENTS:
        if name not in entries:
            raise ArtifactError(f"{out} has no {name}; a picture needs all of {', '.join(COMPONENTS)}: export them all")

    def run(name: str, batches: list[Arrays]) -> list[Array]:
        entry = entries[name]
        chosen = [select(layout.pack(name, batch), entry.inputs) for batch in batches]
        return [only_output(made) for made in execute(manifest.target, artifact_path(out, entry), chosen).outputs]

    length, shape = entries["text_encoder"].inputs[0].shape[1], entries["unet"].inputs[0].shape
    noises = [draw_noise(seed, (1, *shape[1:])) for _, seed in requests]
    texts = [text for text, _ in requests] if manifest.ddim is None else ["", *(text for text, _ in requests)]
    hidden = run("text_encoder", [{"input_ids": tokenize(out / "tokenizer", text, length)} for text in texts])
    if manifest.ddim is not None:
        starts = [start_of(noise, [hidden[0], text]) for noise, text in zip(noises, hidden[1:], strict=True)]
        path = artifact_path(out, entries["unet"])
        latents = walk(manifest.target, path, starts, manifest.ddim).latents
        return [picture_from(image) for image in run("vae_decoder", [{"latent": latent} for latent in latents])]
    timestep = np.asarray([manifest.one_step.timestep], dtype=np.float32)
    inputs = zip(noises, hidden, strict=True)
    outputs = run(
        "unet", [{"sample": noise, "timestep": timestep, "encoder_hidden_states": text} for noise, text in inputs]
    )
    latents = [latent_of(manifest, noise, made) for noise, made in zip(noises, outputs, strict=True)]
    return [picture_from(image) for image in run("vae_decoder", [{"latent": latent} for latent in latents])]


def pictures_of_checkpoint(
    checkpoint_dir: Path, requests: Sequence[Request], size: int | None = None, sampler: SamplerPlan | None = None
) -> list[Float32]:
    """One ``[H, W, 3]`` picture in [0, 1] for each (prompt, seed), computed by torch in float32.

    Raises:
        UsageError: the checkpoint cannot make pictures of ``size`` pixels a side.
    """
    source = golden_source(open_checkpoint(checkpoint_dir).at(size), sampler=sampler)
    return [np.asarray(source.generate(*request).picture, dtype=np.float32) for request in requests]


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
