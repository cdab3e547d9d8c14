"""In-painting: what is painted anew, what the UNet sees of the rest, and how the two become one.

Masks are 1 where a picture is painted anew. A UNet that was trained for it takes ``2·C + 1`` channels: noise, mask, and
the latents of the picture with gray in place of what is hidden, as Stable Diffusion's in-painting UNets do. With any
other UNet the latents outside of the mask are put back after it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from md_export.spec.tensors import Array, Float32


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


def blend(latent: Array, cells: Array, kept: Array) -> Float32:
    """The decoder's input ``[1, C, h, w]``: as it was made where the mask is 1, and ``kept`` elsewhere."""
    made = cells.astype(np.float32) * latent.astype(np.float32)
    return made + (np.float32(1) - cells.astype(np.float32)) * kept.astype(np.float32)


def middle(height: int, width: int) -> Float32:
    """The mask of golden cases: the middle half of a picture in both directions, ``[1, 1, H, W]``."""
    mask = np.zeros((1, 1, height, width), np.float32)
    mask[..., height // 4 : height - height // 4, width // 4 : width - width // 4] = 1
    return mask
