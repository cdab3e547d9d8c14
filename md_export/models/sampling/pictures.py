"""Input pictures of a request: read and check their files, and prepare them for in-painting and image-to-image.

In-painting: a mask is 1 where the picture is repainted. A UNet trained for it has ``2·C + 1`` input channels, as Stable
Diffusion's in-painting UNets: noise, mask, and the latents of the picture with gray pixels under the mask. With any
other UNet, latents outside the mask are restored after the UNet.

Image-to-image (SDEdit, arXiv 2108.01073): sampling starts with a picture's latents plus noise. The ``strength`` is the
share of the schedule that is run. With 1 nothing of the picture is left, and sampling starts with noise only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from md_export.errors import OutputError, UsageError
from md_export.models.sampling.schedule import ScheduleConfig
from md_export.spec.given import require_folder_of
from md_export.spec.sampler import ManySteps, OneStep, Step
from md_export.spec.tensors import Array, Float32


@dataclass(frozen=True)
class Given:
    """A picture and the mask to repaint: ``image`` ``[1, 3, H, W]`` in [-1, 1], ``mask`` ``[1, 1, H, W]``."""

    image: Float32
    mask: Float32


def nothing(height: int, width: int) -> Given:
    """Return a gray picture with a full mask, with which an in-painting UNet makes a whole picture."""
    return Given(np.zeros((1, 3, height, width), np.float32), np.ones((1, 1, height, width), np.float32))


def hide(image: Array, mask: Float32) -> Float32:
    """Return a picture ``[1, 3, H, W]`` in [-1, 1], float32, with gray (0) where the mask ``[1, 1, H, W]`` is 1."""
    return np.where(mask > 0, np.float32(0), image.astype(np.float32))


def cells_of(mask: Array, downscale: int) -> Float32:
    """Return a mask of latent pixels ``[1, 1, h, w]`` that cover a masked pixel of ``[1, 1, H, W]``."""
    _, _, height, width = mask.shape
    blocks = mask.reshape(1, 1, height // downscale, downscale, width // downscale, downscale)
    return np.ascontiguousarray(blocks.max((3, 5)), dtype=np.float32)


def blend(latent: Array, cells: Array, kept: Array) -> Float32:
    """Return the decoder's input ``[1, C, h, w]``: ``latent`` where the mask is 1, ``kept`` elsewhere."""
    made = cells.astype(np.float32) * latent.astype(np.float32)
    return made + (np.float32(1) - cells.astype(np.float32)) * kept.astype(np.float32)


def middle(height: int, width: int) -> Float32:
    """Return the mask of golden cases, ``[1, 1, H, W]``: the middle half of a picture in both directions."""
    mask = np.zeros((1, 1, height, width), np.float32)
    mask[..., height // 4 : height - height // 4, width // 4 : width - width // 4] = 1
    return mask


@dataclass(frozen=True)
class Start:
    """Start of image-to-image: a picture ``[1, 3, H, W]`` in [-1, 1] and the strength in (0, 1]."""

    image: Float32
    strength: float

    def __post_init__(self) -> None:
        """Raise UsageError for a strength outside (0, 1]."""
        if not 0 < self.strength <= 1:
            raise UsageError(
                f"--strength {self.strength:g} is not above 0 and at most 1: near 0 keeps the picture, 1 keeps nothing"
            )


@dataclass(frozen=True)
class Entry:
    """Start of sampling within a schedule.

    Attributes:
        signal, noise: factors of the picture's scaled latents and of the noise in the UNet's first sample.
        one_step, steps: constants of the remaining steps.
    """

    signal: float
    noise: float
    one_step: OneStep
    steps: ManySteps | None

    def noised(self, latent_mean: Array, noise: Float32) -> Float32:
        """Return the noised start ``[1, C, h, w]`` from the VAE encoder's unscaled output and noise."""
        if not self.signal:
            return noise
        latent = latent_mean.astype(np.float32) * np.float32(self.one_step.scaling_factor)
        return np.float32(self.signal) * latent + np.float32(self.noise) * noise


def enter(schedule: ScheduleConfig, one_step: OneStep, steps: ManySteps | None, strength: float) -> Entry:
    """Return the start of sampling for the share ``strength`` of the timesteps, or of the given steps.

    Raises:
        UsageError: the strength leaves no step.
    """
    if strength == 1:
        return Entry(0.0, 1.0, one_step, steps)
    if steps is None:
        timestep = round(strength * one_step.timestep)
        a, b = schedule.x0_at(timestep)
        return Entry(*schedule.shares(timestep), replace(one_step, timestep=timestep, a=a, b=b), None)
    left = int(strength * len(steps.steps))
    if not left:
        raise UsageError(
            f"--strength {strength:g} leaves none of {len(steps.steps)} steps; give at least {1 / len(steps.steps):g}"
        )
    first, *rest = steps.steps[-left:]
    # The first step has no previous estimate of x0, so it uses its own.
    a, b = first.a + first.earlier * first.x0_of_x, first.b + first.earlier * first.x0_of_output
    kept = (replace(first, a=a, b=b, earlier=0.0), *rest)
    if steps.method == "flow_match_euler":
        shares = 1 - first.timestep / schedule.num_train_timesteps, first.timestep / schedule.num_train_timesteps
    else:
        signal = _signal(first, steps)
        shares = schedule.shares(first.timestep) if signal is None else (signal, max(1 - signal**2, 0.0) ** 0.5)
    return Entry(*shares, one_step, replace(steps, steps=kept, start=1 / first.scale))


def _signal(step: Step, steps: ManySteps) -> float | None:
    """Return √ᾱ of a step by its constants, since its noise level may differ from its timestep's; None if unknown."""
    if step.scale != 1:
        return step.scale
    if not step.x0_of_x:
        return None
    return 1 / step.x0_of_x if steps.prediction_type == "epsilon" else step.x0_of_x


_COLOURS: Final = (("RGB",), "a picture in colour without transparency")
_FORMATS: Final = ("PNG", "JPEG")
# Smallest gray value that counts as white in a mask. As in Stable Diffusion's pipelines, white is repainted.
_WHITE: Final = 128


def read_given(picture: Path, mask: Path, shape: tuple[int, ...]) -> Given:
    """Read a picture and its mask, both of ``shape`` (height, width).

    Raises:
        UsageError: a file cannot be read, has another size or an unsupported colour mode, or the mask has no white.
    """
    image = _image(_read(picture, shape, *_COLOURS))
    hidden = _read(mask, shape, ("L", "1"), "a mask of black, which stays, and white, which is repainted")
    cover = (hidden >= _WHITE).astype(np.float32)[None, None]
    if not cover.any():
        raise UsageError(f"{mask} is black everywhere, so nothing would be repainted; make the area to repaint white")
    return Given(image, cover)


def read_start(picture: Path, strength: float, shape: tuple[int, ...]) -> Start:
    """Read a start picture of ``shape`` (height, width); raises as :func:`read_given`."""
    return Start(_image(_read(picture, shape, *_COLOURS)), strength)


def read_condition(path: Path, shape: tuple[int, ...]) -> Array:
    """Read the condition picture of an adapter, ``shape`` ``[1, C, H, W]``, values in [0, 1].

    Raises:
        UsageError: the file cannot be read, has another size, or is in colour although the adapter needs gray.
    """
    modes, what = (("L", "1"), "a gray picture") if shape[1] == 1 else (("RGB",), "a picture in colour")
    pixels = _read(path, shape[2:], modes, what).astype(np.float32) / np.float32(255)
    return np.ascontiguousarray(pixels.reshape(*shape[2:], shape[1]).transpose(2, 0, 1)[None])


def _image(colours: NDArray[np.uint8]) -> Float32:
    """Convert pixels ``[H, W, 3]`` to an image ``[1, 3, H, W]`` in [-1, 1]."""
    image = colours.astype(np.float32).transpose(2, 0, 1)[None] / np.float32(127.5) - np.float32(1)
    return np.ascontiguousarray(image)


def _read(path: Path, shape: tuple[int, ...], modes: tuple[str, ...], what: str) -> NDArray[np.uint8]:
    """Read a file's pixels; size and mode are checked in its header before memory is allocated."""
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is a folder, a pipe or a device, not a file; name a PNG or JPEG")
    try:
        with Image.open(path, formats=_FORMATS) as file:
            height, width = shape
            if file.size != (width, height):
                raise UsageError(
                    f"{path} has {file.width} × {file.height} pixels, the model's pictures have {width} × {height}; "
                    "scale or crop it first"
                )
            if file.mode not in modes:
                raise UsageError(f"{path} is not {what} (its mode is {file.mode}); save it as mode {modes[0]}")
            pixels = file.convert(modes[0])
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise UsageError(f"{path} cannot be read as PNG or JPEG: {error}; save it again") from error
    return np.asarray(pixels, np.uint8)


def as_image(picture: Float32) -> Image.Image:
    """Convert a ``[H, W, 3]`` picture in [0, 1] to an RGB image of 8 bits.

    Raises:
        OutputError: the picture has NaN or Inf, which would look black.
    """
    if not np.isfinite(picture).all():
        raise OutputError("the picture has NaN or Inf and was not written; run md-export verify on the artifacts")
    return Image.fromarray(to_bytes(picture))


def write_png(path: Path, picture: Float32) -> None:
    """Write a ``[H, W, 3]`` picture in [0, 1] as PNG; raises OutputError as :func:`as_image`, or without a folder."""
    image = as_image(picture)
    require_folder_of(path)
    image.save(path, format="PNG")


def to_bytes(picture: Float32) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Return values in [0, 1] as 0…255, rounded."""
    return np.round(picture * 255.0).astype(np.uint8)
