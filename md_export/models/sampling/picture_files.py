"""Read the picture files that a user gives, with checks before any computation, and write the generated pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from md_export.errors import OutputError, UsageError
from md_export.models.sampling.image_to_image import Start
from md_export.models.sampling.inpainting import Given
from md_export.spec.tensors import Array, Float32

_COLOURS: Final = (("RGB",), "a picture in colour without transparency")
_FORMATS: Final = ("PNG", "JPEG")
# Least grey value that counts as white in a mask. Stable Diffusion's pipelines repaint white.
_WHITE: Final = 128


def read_given(picture: Path, mask: Path, size: int) -> Given:
    """Read a picture and its mask, both ``size`` pixels a side.

    Raises:
        UsageError: a file cannot be read, has another size or an unsupported colour mode, or the mask has no white.
    """
    image = _image(_read(picture, size, *_COLOURS))
    hidden = _read(mask, size, ("L", "1"), "a mask of black, which stays, and white, which is painted anew")
    cover = (hidden >= _WHITE).astype(np.float32)[None, None]
    if not cover.any():
        raise UsageError(f"{mask} is black everywhere, so nothing would be painted; make white what shall be anew")
    return Given(image, cover)


def read_start(picture: Path, strength: float, size: int) -> Start:
    """Read a start picture of ``size`` pixels a side; raises as :func:`read_given`."""
    return Start(_image(_read(picture, size, *_COLOURS)), strength)


def read_condition(path: Path, shape: tuple[int, ...]) -> Array:
    """Read the condition picture of an adapter, ``shape`` ``[1, C, H, W]``, values in [0, 1].

    Raises:
        UsageError: the file cannot be read, has another size, or has colours although the adapter takes grey values.
    """
    modes, what = (("L", "1"), "picture of grey values") if shape[1] == 1 else (("RGB",), "picture in colour")
    pixels = _read(path, shape[-1], modes, what).astype(np.float32) / np.float32(255)
    return np.ascontiguousarray(pixels.reshape(*shape[2:], shape[1]).transpose(2, 0, 1)[None])


def _image(colours: NDArray[np.uint8]) -> Float32:
    """Convert pixels ``[H, W, 3]`` to an image ``[1, 3, H, W]`` in [-1, 1]."""
    image = colours.astype(np.float32).transpose(2, 0, 1)[None] / np.float32(127.5) - np.float32(1)
    return np.ascontiguousarray(image)


def _read(path: Path, size: int, modes: tuple[str, ...], what: str) -> NDArray[np.uint8]:
    """Read a file's pixels; size and mode are checked in its header before memory is allocated."""
    try:
        with Image.open(path, formats=_FORMATS) as file:
            if file.size != (size, size):
                raise UsageError(
                    f"{path} has {file.width} × {file.height} pixels, the model's pictures have {size} × {size}; "
                    "scale or crop it first"
                )
            if file.mode not in modes:
                raise UsageError(f"{path} is not {what} (its mode is {file.mode}); save it as mode {modes[0]}")
            pixels = file.convert(modes[0])
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise UsageError(f"{path} cannot be read as PNG or JPEG: {error}; save it again") from error
    return np.asarray(pixels, np.uint8)


def write_png(path: Path, picture: Float32) -> None:
    """Write a ``[H, W, 3]`` picture in [0, 1] as PNG.

    Raises:
        OutputError: the picture holds NaN or Inf, which a black file would hide.
    """
    if not np.isfinite(picture).all():
        raise OutputError("the picture holds NaN or Inf and was not written; run md-export verify on the artifacts")
    if not path.parent.is_dir():
        raise OutputError(f"{path.parent} does not exist; create it first")
    Image.fromarray(to_bytes(picture)).save(path, format="PNG")


def to_bytes(picture: Float32) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Convert [0, 1] to 0…255, rounded."""
    return np.round(picture * 255.0).astype(np.uint8)
