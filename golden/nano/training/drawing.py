"""Draws scenes: anti-aliased, shaded objects with a soft shadow on a gradient."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from training.scenes import Item, Scene
from training.shapes import signed_distance

Array = NDArray[np.float32]
Layers = tuple[Array, Array, Array, Array]

#: Picture side in pixels.
SIDE = 64
#: Object centres (x, y) in pixels: 16 apart, so that latents (8 px a cell) shift exactly.
CENTRES: dict[str, tuple[float, float]] = {
    "left": (16, 32),
    "right": (48, 32),
    "top": (32, 16),
    "bottom": (32, 48),
    "center": (32, 32),
}
#: Object radii in pixels; "medium" is used when there are two objects.
RADII: dict[str, float] = {"large": 14.0, "small": 9.0, "medium": 12.0}
#: Object colours, RGB in [0, 1].
PALETTE: dict[str, tuple[float, float, float]] = {
    "red": (0.86, 0.10, 0.12),
    "orange": (0.98, 0.52, 0.06),
    "yellow": (0.97, 0.87, 0.12),
    "green": (0.12, 0.66, 0.22),
    "blue": (0.12, 0.30, 0.90),
    "purple": (0.48, 0.14, 0.72),
    "pink": (0.98, 0.46, 0.74),
}
#: Background colours at the (top, bottom) row, RGB in [0, 1].
GRADIENTS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "white": ((0.99, 0.99, 0.99), (0.90, 0.90, 0.92)),
    "gray": ((0.60, 0.61, 0.62), (0.46, 0.47, 0.49)),
    "sky": ((0.58, 0.78, 0.96), (0.82, 0.92, 0.99)),
    "night": ((0.03, 0.04, 0.14), (0.11, 0.12, 0.28)),
}


def draw(scenes: Sequence[Scene]) -> Array:
    """Pictures [N, 64, 64, 3] in [0, 1]."""
    return np.stack([_draw_one(scene) for scene in scenes])


def background_picture(name: str) -> Array:
    """The empty background [64, 64, 3] in [0, 1]."""
    top, bottom = (np.array(colour, np.float32) for colour in GRADIENTS[name])
    ramp = np.linspace(0, 1, SIDE, dtype=np.float32)[:, None, None]
    return np.broadcast_to(top + (bottom - top) * ramp, (SIDE, SIDE, 3)).copy()


def _draw_one(scene: Scene) -> Array:
    picture = background_picture(scene.background)
    for item in scene.items:
        picture = painted(picture, item.colour, _layers(item.shape, item.size, item.place))
    return picture


def painted(picture: Array, colour: str, layers: Layers) -> Array:
    """A picture [64, 64, 3] with one object more."""
    cover, shadow, light, gloss = layers
    surface = np.array(PALETTE[colour], np.float32) * light
    surface = np.clip(surface + (1 - surface) * gloss, 0, 1)
    picture = picture * shadow
    return picture + (surface - picture) * cover


@cache
def _layers(shape: str, size: str, place: str) -> Layers:
    return layers_at(shape, RADII[size], CENTRES[place])


def layers_at(shape: str, radius: float, centre: tuple[float, float]) -> Layers:
    """Cover, shadow factor, light factor and gloss of one object, each [64, 64, 1]; lengths are in pixels."""
    dx, dy = offsets(centre)
    inside = -signed_distance(shape, dx, dy, radius)
    cover = np.clip(inside + 0.5, 0, 1)
    fallen = -signed_distance(shape, dx - 1.5, dy - 2.5, radius)
    shadow = 1 - 0.38 / (1 + np.exp(-fallen / 1.4))
    bulge = np.clip(inside / (0.35 * radius), 0, 1)
    light = 0.82 + 0.18 * bulge - 0.14 * (dx + dy) / radius
    spot = np.hypot(dx + 0.34 * radius, dy + 0.42 * radius) / (0.3 * radius)
    gloss = 0.5 * np.exp(-(spot**2))
    layers = (cover, shadow, light, gloss)
    return tuple(layer.astype(np.float32)[..., None] for layer in layers)  # type: ignore[return-value]


def offsets(centre: tuple[float, float]) -> tuple[Array, Array]:
    """Pixel centres relative to `centre`: dx and dy, each [64, 64]."""
    axis = np.arange(SIDE, dtype=np.float32) + np.float32(0.5)
    dx, dy = np.meshgrid(axis - np.float32(centre[0]), axis - np.float32(centre[1]))
    return dx, dy


def item_cover(item: Item) -> Array:
    """The anti-aliased mask [64, 64] of one object, in [0, 1]."""
    return _layers(item.shape, item.size, item.place)[0][..., 0]
