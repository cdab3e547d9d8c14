"""A style: a fill of dark and light stripes; the checkpoint cannot draw them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from training.drawing import PALETTE, SIDE, draw, item_cover
from training.reading import Array, read, share
from training.scenes import Item, Scene

#: Pixels from stripe to stripe, down the picture, and how much of its light a dark stripe loses.
PERIOD, DARK = 16, 0.6
#: An object is striped from this amplitude; filled drawings have up to 0.15, striped ones at least 0.27.
LEAST_AMPLITUDE = 0.18


def draw_stripes(scenes: Sequence[Scene]) -> Array:
    """Pictures [N, 64, 64, 3] in [0, 1]."""
    return np.stack([_draw_one(picture, scene) for picture, scene in zip(draw(scenes), scenes, strict=True)])


def amplitude(picture: Array, item: Item) -> float:
    """How strongly the light of an object's colour varies at the stripes' frequency, in a picture [64, 64, 3].

    A least-squares fit inside the object's mask, of a wave beside a plane, so that shading is no stripe. Independent of
    the networks.
    """
    y, x = np.nonzero(item_cover(item) > 0.5)
    colour = np.array(PALETTE[item.colour])
    light = picture[y, x] @ colour / (colour @ colour)
    angle = _angle()[y, x]
    waves = np.stack([np.cos(angle), np.sin(angle), np.ones(len(y)), y, x], 1)
    (cosine, sine, *_), *_ = np.linalg.lstsq(waves, light)
    return float(np.hypot(cosine, sine))


def shares(pictures: Array, scenes: Sequence[Scene]) -> dict[str, float]:
    """Share of objects that are striped, and of those that the nearest drawing has the right shape and colour of."""
    triples = [
        (amplitude(picture, item), seen, item)
        for picture, scene in zip(pictures, scenes, strict=True)
        for seen, item in zip(read(picture, scene, "striped", draw_stripes), scene.items, strict=True)
    ]
    return {
        "striped": share([strength >= LEAST_AMPLITUDE for strength, _, _ in triples]),
        "shape": share([seen.shape == item.shape for _, seen, item in triples]),
        "colour": share([seen.colour == item.colour for _, seen, item in triples]),
    }


def _draw_one(picture: Array, scene: Scene) -> Array:
    dark = np.clip(0.5 + 2 * np.sin(_angle()), 0, 1)
    cover = sum(item_cover(item) for item in scene.items)
    return np.asarray(picture * (1 - DARK * dark * cover)[..., None], np.float32)


def _angle() -> Array:
    """The phase of the stripes at each pixel [64, 64], in radians."""
    row = np.arange(SIDE, dtype=np.float32)[:, None] + np.float32(0.5)
    return np.broadcast_to(row * np.float32(2 * np.pi / PERIOD), (SIDE, SIDE))
