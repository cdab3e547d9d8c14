"""A style: outlines without fill, shade or shadow; the checkpoint cannot draw them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from training.drawing import CENTRES, PALETTE, RADII, background_picture, offsets
from training.reading import Array, Seen, read, share
from training.scenes import Scene
from training.shapes import signed_distance

#: Pixels of an outline, all of it inside the shape.
STROKE = 4.0
OUTLINED = "outlined"


def draw_outlines(scenes: Sequence[Scene]) -> Array:
    """Pictures [N, 64, 64, 3] in [0, 1]."""
    return np.stack([_draw_one(scene) for scene in scenes])


def read_outlines(picture: Array, scene: Scene) -> list[Seen]:
    """Each object of a picture [64, 64, 3] in [0, 1], filled or outlined."""
    return read(picture, scene, OUTLINED, draw_outlines)


def shares(pictures: Array, scenes: Sequence[Scene]) -> dict[str, float]:
    """Share of objects that are outlined, and of those whose shape and colour are right; rings are outlines anyway."""
    pairs = [
        (seen, item)
        for picture, scene in zip(pictures, scenes, strict=True)
        for seen, item in zip(read_outlines(picture, scene), scene.items, strict=True)
        if item.shape != "ring"
    ]
    return {
        OUTLINED: share([seen.style == OUTLINED for seen, _ in pairs]),
        "shape": share([seen.shape == item.shape for seen, item in pairs]),
        "colour": share([seen.colour == item.colour for seen, item in pairs]),
    }


def _draw_one(scene: Scene) -> Array:
    picture = background_picture(scene.background)
    for item in scene.items:
        dx, dy = offsets(CENTRES[item.place])
        distance = signed_distance(item.shape, dx, dy, RADII[item.size])
        cover = np.clip(STROKE / 2 + 0.5 - np.abs(distance + STROKE / 2), 0, 1)[..., None]
        picture = picture + (np.array(PALETTE[item.colour], np.float32) - picture) * cover
    return picture.astype(np.float32)
