"""Golden cases made: torch computes every component's inputs and outputs for each prompt and seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np

from md_export import __version__
from md_export.errors import GoldenError
from md_export.models.condition_images import edges
from md_export.models.sampling.generate import (
    Generation,
    Steering,
    draw_noise,
    encode,
    generate,
    generate_in_steps,
    only_output,
    picture_from,
    tokenize,
)
from md_export.models.sampling.inpainting import Given, around_of, blend, cells_of, hide, middle, nothing
from md_export.parity.golden.case import arrays_of, check_finite
from md_export.parity.golden.folder import SCHEMA, GoldenFile, GoldenIndex, write_index
from md_export.spec.runner import Runner
from md_export.spec.sampler import Ddim, OneStep
from md_export.spec.tensors import Array, save_tensors
from md_export.system.files import sha256_of


@dataclass(frozen=True)
class GoldenSource:
    """What golden cases are computed from.

    ``downscale``: pixels per latent cell along a side. ``inpaints``: the UNet takes a picture's latents, too, and
    ``encodes``: cases hold what the VAE encoder makes of a picture. ``steering``: the component that takes a condition
    picture, if any, and ``condition_channels`` of that picture.
    """

    runners: Mapping[str, Runner]
    tokenizer_dir: Path
    text_length: int
    latent_shape: tuple[int, ...]
    one_step: OneStep
    checkpoint_sha256: str
    rewrites: tuple[str, ...] = ()
    ddim: Ddim | None = None
    downscale: int = 8
    inpaints: bool = False
    encodes: bool = False
    steering: str | None = None
    condition_channels: int = 0

    def generate(self, prompt: str, seed: int) -> Generation:
        """A golden case's values for one prompt and seed.

        The encoder's input is the picture itself. A UNet that in-paints first makes a picture of nothing, all of it
        hidden, and then paints the middle of that one again: the encoder's input is what it leaves. The condition of
        an adapter or a ControlNet are the edges of the picture that is made without it.
        """
        if not self.inpaints:
            values = self.picture(prompt, seed)
            if self.steering:
                values = self.picture(prompt, seed, condition=edges(values.picture, self.condition_channels))
            return self._encoded(values, np.clip(values.image, -1, 1)) if self.encodes else values
        _, _, height, width = self.latent_shape
        sides = height * self.downscale, width * self.downscale
        first = self._inpainted(prompt, seed, nothing(*sides))
        condition = edges(first.picture, self.condition_channels) if self.steering else None
        return self._inpainted(prompt, seed, Given(np.clip(first.image, -1, 1), middle(*sides)), condition)

    def painted(
        self,
        prompt: str,
        seed: int,
        given: Given | None = None,
        condition: Array | None = None,
        noise: Array | None = None,
    ) -> Generation:
        """A picture in which what of ``given`` is not hidden is kept; None: a picture of nothing but the prompt.

        ``condition``: for what steers the UNet, which otherwise adds nothing. ``noise``: in place of the seed's.
        """
        _, _, height, width = self.latent_shape
        if self.inpaints:
            given = given or nothing(height * self.downscale, width * self.downscale)
            return self._inpainted(prompt, seed, given, condition, noise)
        values = self.picture(prompt, seed, None, condition, noise)
        if given is None:
            return values
        kept = encode(self.runners, given.image)
        latent = blend(values.latent, cells_of(given.mask, self.downscale), kept)
        image = only_output(self.runners["vae_decoder"].run({"latent": latent}))
        return replace(values, latent=latent, image=image, picture=picture_from(image))

    def picture(
        self,
        prompt: str,
        seed: int,
        around: Array | None = None,
        condition: Array | None = None,
        noise: Array | None = None,
    ) -> Generation:
        """In one step or in many; ``around``: for a UNet that in-paints, others as in :meth:`painted`."""
        ids = tokenize(self.tokenizer_dir, prompt, self.text_length)
        noise = draw_noise(seed, self.latent_shape) if noise is None else noise
        steering = None if condition is None or self.steering is None else Steering(self.steering, condition)
        if self.ddim is None:
            return generate(self.runners, ids, noise, self.one_step, around, steering)
        both = np.concatenate([tokenize(self.tokenizer_dir, "", self.text_length), ids])
        return generate_in_steps(self.runners, both, noise, self.ddim, around, steering)

    def _inpainted(
        self, prompt: str, seed: int, given: Given, condition: Array | None = None, noise: Array | None = None
    ) -> Generation:
        shown = hide(given.image, given.mask)
        latent = encode(self.runners, shown)
        around = around_of(cells_of(given.mask, self.downscale), latent, self.one_step.scaling_factor)
        values = self.picture(prompt, seed, around, condition, noise)
        return replace(values, encoder_image=shown, encoder_latent=latent)

    def _encoded(self, values: Generation, image: Array) -> Generation:
        return replace(values, encoder_image=image, encoder_latent=encode(self.runners, image))


def write_golden(
    source: GoldenSource,
    pairs: list[tuple[str, int]],
    folder: Path,
    progress: Callable[[str], None] = lambda _: None,
    use: str = "golden",
) -> None:
    """Compute one case per (prompt, seed) with the torch components and write index and files into ``folder``.

    ``use``: of the cases, in lines of progress.

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
        save_tensors(arrays_of(values), path)
        path.chmod(0o644)  # safetensors makes files that only their owner can read
        files.append(GoldenFile(name, prompt, seed, path.name, sha256_of(path)))
    made = source.checkpoint_sha256, source.rewrites, source.one_step, _versions(), tuple(files), source.ddim
    write_index(GoldenIndex(SCHEMA, *made), folder)


def _versions() -> dict[str, str]:
    names = ("torch", "transformers", "numpy")
    return {"md-export": __version__, **{name: version(name) for name in names}}


def read_prompts(path: Path) -> list[str]:
    """Prompts of a text file, one a line, blank lines left out.

    Raises:
        GoldenError: unreadable, or empty.
    """
    try:
        prompts = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise GoldenError(f"{path}: cannot be read as prompts: {error}") from error
    if not prompts:
        raise GoldenError(f"{path} holds no prompt; write one a line")
    return prompts
