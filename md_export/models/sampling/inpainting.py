"""In-painting: what is painted anew, what the UNet sees of the rest, and how the two become one.

Masks are 1 where a picture is painted anew. A UNet that was trained for it takes ``2·C + 1`` channels: noise, mask, and
the latents of the picture with gray in place of what is hidden, as Stable Diffusion's in-painting UNets do; the last
two together are called ``around`` here. With any other UNet the latents outside of the mask are put back after it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from md_export.spec.tensors import Array

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Given:
    """A picture and what of it is painted anew: ``image`` ``[1, 3, H, W]`` in [-1, 1], ``mask`` ``[1, 1, H, W]``."""

    image: Float32
    mask: Float32


def nothing(height: int, width: int) -> Given:
    """A picture of which all is hidden: what an in-painting UNet makes a whole picture of."""
    return Given(np.zeros((1, 3, height, width), np.float32), np.ones((1, 1, height, width), np.float32))


def hide(image: Array, mask: Float32) -> Float32:
    """A picture ``[1, 3, H, W]`` in [-1, 1] with gray, 0, where the mask ``[1, 1, H, W]`` is 1; float32."""
    return np.where(mask > 0, np.float32(0), image.astype(np.float32))


def cells_of(mask: Array, downscale: int) -> Float32:
    """A mask of pixels ``[1, 1, H, W]`` → of latent cells ``[1, 1, h, w]``: those with a hidden pixel."""
    _, _, height, width = mask.shape
    blocks = mask.reshape(1, 1, height // downscale, downscale, width // downscale, downscale)
    return np.ascontiguousarray(blocks.max((3, 5)), dtype=np.float32)


def around_of(cells: Array, latent_mean: Array, scaling_factor: float) -> Float32:
    """What the UNet takes beside the noise, ``[1, C + 1, h, w]``: the mask, and what is seen as scaled latents."""
    scaled = latent_mean.astype(np.float32) * np.float32(scaling_factor)
    return np.concatenate([cells.astype(np.float32), scaled], axis=1)


def with_around(sample: Array, around: Array | None) -> Array:
    """The UNet's ``sample``: noise ``[N, C, h, w]``, for in-painting with ``around`` in further channels."""
    if around is None:
        return sample
    return np.concatenate([sample, np.repeat(around.astype(sample.dtype), len(sample), axis=0)], axis=1)


def blend(latent: Array, cells: Array, kept: Array) -> Float32:
    """The decoder's input ``[1, C, h, w]``: as it was made where the mask is 1, and ``kept`` elsewhere."""
    made = cells.astype(np.float32) * latent.astype(np.float32)
    return made + (np.float32(1) - cells.astype(np.float32)) * kept.astype(np.float32)


def middle(height: int, width: int) -> Float32:
    """The mask of golden cases: the middle half of a picture in both directions, ``[1, 1, H, W]``."""
    mask = np.zeros((1, 1, height, width), np.float32)
    mask[..., height // 4 : height - height // 4, width // 4 : width - width // 4] = 1
    return mask
