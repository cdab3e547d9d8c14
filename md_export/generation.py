"""A picture for a prompt, by torch or by exported artifacts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from md_export.artifact import ArtifactEntry, artifact_path, read_manifest
from md_export.checkpoint import open_checkpoint
from md_export.components import COMPONENTS
from md_export.components.runner import TorchRunner
from md_export.errors import ArtifactError, OutputError
from md_export.parity.prepare import one_step
from md_export.sampling import Float32, draw_noise, generate, tokenize
from md_export.tensors import Array, Arrays
from md_export.workers import execute


@dataclass(frozen=True)
class ArtifactRunner:
    """An artifact behind the runner interface, each call in a process of its own."""

    target: str
    path: Path

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """Execute once."""
        (outputs,) = execute(self.target, self.path, [inputs])
        return outputs


def picture_of_artifacts(out: Path, prompt: str, seed: int) -> Float32:
    """``[H, W, 3]`` in [0, 1], every component executed by its target's runtime.

    Raises:
        ArtifactError: the export lacks a component.
    """
    manifest = read_manifest(out)
    entries: dict[str, ArtifactEntry] = {entry.component: entry for entry in manifest.artifacts}
    for name in COMPONENTS:
        if name not in entries:
            raise ArtifactError(f"{out} has no {name}; a picture needs all of {', '.join(COMPONENTS)}: export them all")
    runners = {name: ArtifactRunner(manifest.target, artifact_path(out, entries[name])) for name in COMPONENTS}
    text_length = entries["text_encoder"].inputs[0].shape[1]
    ids = tokenize(out / "tokenizer", prompt, text_length)
    noise = draw_noise(seed, entries["unet"].inputs[0].shape)
    picture = generate(runners, ids, noise, manifest.one_step).picture
    return np.asarray(picture, dtype=np.float32)


def picture_of_checkpoint(checkpoint_dir: Path, prompt: str, seed: int) -> Float32:
    """``[H, W, 3]`` in [0, 1], computed by torch in float32."""
    checkpoint = open_checkpoint(checkpoint_dir)
    config = checkpoint.config
    runners = {name: TorchRunner(name, checkpoint.module(name), config) for name in COMPONENTS}
    ids = tokenize(checkpoint.tokenizer_dir, prompt, config.text_shape[1])
    picture = generate(runners, ids, draw_noise(seed, config.latent_shape), one_step(config)).picture
    return np.asarray(picture, dtype=np.float32)


def write_png(path: Path, picture: Float32) -> None:
    """Write a ``[H, W, 3]`` picture in [0, 1] as PNG.

    Raises:
        OutputError: the picture holds NaN or Inf; a black file would hide it.
    """
    if not np.isfinite(picture).all():
        raise OutputError("the picture holds NaN or Inf and was not written; run md-export verify on the artifacts")
    if not path.parent.is_dir():
        raise OutputError(f"{path.parent} does not exist; create it first")
    Image.fromarray(np.round(picture * 255.0).astype(np.uint8)).save(path, format="PNG")
