"""Make golden cases: torch computes every component's inputs and outputs for each prompt and seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from md_export import __version__
from md_export.errors import GoldenError
from md_export.models.condition_images import edges
from md_export.models.given import MADE, PICTURE
from md_export.models.sampling.generate import PictureRequest, Pipeline
from md_export.models.sampling.inpainting import Given, middle
from md_export.models.walk import Tensors
from md_export.parity.golden.case import check_finite
from md_export.parity.golden.folder import SCHEMA, GoldenFile, GoldenIndex, write_index
from md_export.spec.sampler import Ddim, Euler
from md_export.spec.tensors import save_tensors
from md_export.system.files import sha256_of


@dataclass(frozen=True)
class GoldenSource:
    """Pipeline and options that golden cases are computed with.

    ``encodes``: cases hold the VAE encoder's output for a picture. ``condition_channels``: channels of the condition
    picture of an adapter or a ControlNet; 0 without either.
    """

    pipeline: Pipeline
    checkpoint_sha256: str
    rewrites: tuple[str, ...] = ()
    encodes: bool = False
    condition_channels: int = 0

    def generate(self, prompt: str, seed: int) -> Tensors:
        """Return a golden case's values for one prompt and seed.

        The encoder's input is the picture itself. An inpainting UNet first makes a picture with everything masked and
        then repaints the middle of that picture; the encoder's input is the unmasked rest. The condition of an adapter
        or a ControlNet is the edges of the picture that is made without a condition.
        """
        inpaints, channels, image = self.pipeline.inpaints, self.condition_channels, self.pipeline.family.image.key
        values = self._values(PictureRequest(prompt, seed))
        if inpaints or channels:
            given = Given(np.clip(values[image], -1, 1), middle(*self.pipeline.sides)) if inpaints else None
            condition = edges(values[MADE.key], channels) if channels else None
            values = self._values(PictureRequest(prompt, seed, given, condition))
        if self.encodes and not inpaints:
            values[PICTURE.key] = np.clip(values[image], -1, 1)
            (values[self.pipeline.family.encoded.key],) = self.pipeline.encoded([values[PICTURE.key]])
        return values

    def _values(self, request: PictureRequest) -> Tensors:
        steps = self.pipeline.steps
        (values,) = self.pipeline.values([request], steps.recorded if steps else ())
        return values


def write_golden(
    source: GoldenSource,
    pairs: list[tuple[str, int]],
    folder: Path,
    progress: Callable[[str], None] = lambda _: None,
    use: str = "golden",
) -> None:
    """Compute one case per (prompt, seed) with the torch components and write index and files into ``folder``.

    ``use``: name of the cases' use in progress lines.

    Raises:
        GoldenError: the checkpoint itself computes NaN or Inf for a prompt.
    """
    files = []
    for number, (prompt, seed) in enumerate(pairs):
        progress(f"{use} case {number + 1} of {len(pairs)}: {prompt!r}, seed {seed}")
        values = source.generate(prompt, seed)
        check_finite(values, prompt)
        name = f"case-{number:03d}"
        path = folder / f"{name}.safetensors"
        save_tensors(values, path)
        path.chmod(0o644)  # safetensors creates files that only their owner can read
        files.append(GoldenFile(name, prompt, seed, path.name, sha256_of(path)))
    one_step, steps = source.pipeline.one_step, source.pipeline.steps
    made = source.checkpoint_sha256, source.rewrites, one_step, _versions(), tuple(files)
    both = steps if isinstance(steps, Ddim) else None, steps if isinstance(steps, Euler) else None
    write_index(GoldenIndex(SCHEMA, *made, *both), folder)


def _versions() -> dict[str, str]:
    names = ("torch", "transformers", "numpy")
    return {"md-export": __version__, **{name: version(name) for name in names}}


def read_prompts(path: Path) -> list[str]:
    """Read prompts from a text file, one per line, without blank lines.

    Raises:
        GoldenError: the file is unreadable or empty.
    """
    try:
        prompts = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise GoldenError(f"{path}: cannot be read as prompts: {error}") from error
    if not prompts:
        raise GoldenError(f"{path} holds no prompt; write one a line")
    return prompts
