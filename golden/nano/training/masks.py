"""What the detector needs of image morphology, in numpy alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]
Pixel = tuple[int, int]


def components(mask: Mask) -> list[Mask]:
    """The 4-connected parts of a mask [H, W], in reading order of their first pixel."""
    left = dict.fromkeys(zip(*(axis.tolist() for axis in np.nonzero(mask)), strict=True))
    parts = []
    while left:
        part = np.zeros_like(mask)
        part[tuple(zip(*_flooded(next(iter(left)), left), strict=True))] = True
        parts.append(part)
    return parts


def eroded(mask: Mask, times: int) -> Mask:
    """The mask [H, W] without its outermost pixels, `times` over."""
    for _ in range(times):
        mask = np.asarray(_neighbourhood(mask).all(0), bool)
    return mask


def sampled(picture: Array, y: Array, x: Array) -> Array:
    """Bilinear samples of a picture [H, W] at pixel positions y, x of one shape; 0 outside."""
    padded = np.pad(picture, 2)
    y, x = (np.clip(axis + 2, 0, size - 1.001) for axis, size in zip((y, x), padded.shape, strict=True))
    top, left = y.astype(int), x.astype(int)
    down, right = y - top, x - left
    upper = padded[top, left] * (1 - right) + padded[top, left + 1] * right
    lower = padded[top + 1, left] * (1 - right) + padded[top + 1, left + 1] * right
    return np.asarray(upper * (1 - down) + lower * down, np.float32)


def _neighbourhood(values: Mask) -> Mask:
    """Each pixel with its four neighbours [5, H, W]; outside is False."""
    padded = np.pad(values, 1)
    inner, before, after = slice(1, -1), slice(None, -2), slice(2, None)
    windows = ((inner, inner), (after, inner), (before, inner), (inner, after), (inner, before))
    return np.stack([padded[window] for window in windows])


def _flooded(start: Pixel, left: dict[Pixel, None]) -> list[Pixel]:
    """Every pixel connected to `start`; they are taken out of `left`."""
    del left[start]
    reached = [start]
    for y, x in reached:
        for near in ((y, x + 1), (y, x - 1), (y + 1, x), (y - 1, x)):
            if near in left:
                del left[near]
                reached.append(near)
    return reached
