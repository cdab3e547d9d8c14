"""The drawing style of the nano LoRA: outlines without fill, shade or shadow; the checkpoint cannot draw them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
from numpy.typing import NDArray

from training.drawing import CENTRES, PALETTE, RADII, background_picture, draw, offsets
from training.scenes import COLOURS, SHAPES, Item, Scene
from training.shapes import signed_distance

Array = NDArray[np.float32]

#: Pixels of an outline, all of it inside the shape.
STROKE = 4.0
STYLES = ("filled", "outlined")
#: Half the side of the square around an object's centre that holds all of it, and nothing of another.
_REACH = 16


@dataclass(frozen=True)
class Seen:
    """How one object is drawn, and what it is."""

    style: str
    shape: str
    colour: str


def draw_outlines(scenes: Sequence[Scene]) -> Array:
    """Pictures [N, 64, 64, 3] in [0, 1]."""
    return np.stack([_draw_one(scene) for scene in scenes])


def read(picture: Array, scene: Scene) -> list[Seen]:
    """Each object of a picture [64, 64, 3] in [0, 1]: the nearest of all shapes and colours in both styles.

    Independent of the networks. Where the objects of ``scene`` sit, and on what background, is taken from it.
    """
    found = []
    for item in scene.items:
        x, y = (int(value) for value in CENTRES[item.place])
        window = slice(max(0, y - _REACH), y + _REACH), slice(max(0, x - _REACH), x + _REACH)
        forms, drawn = _drawings(scene.background, item.size, item.place)
        errors = np.abs(drawn[:, *window] - picture[window]).mean((1, 2, 3))
        found.append(forms[int(errors.argmin())])
    return found


def shares(pictures: Array, scenes: Sequence[Scene]) -> dict[str, float]:
    """Share of objects that are outlined, and of those whose shape and colour are right; rings are outlines anyway."""
    pairs = [
        (seen, item)
        for picture, scene in zip(pictures, scenes, strict=True)
        for seen, item in zip(read(picture, scene), scene.items, strict=True)
        if item.shape != "ring"
    ]
    return {
        "outlined": float(np.mean([seen.style == "outlined" for seen, _ in pairs])),
        "shape": float(np.mean([seen.shape == item.shape for seen, item in pairs])),
        "colour": float(np.mean([seen.colour == item.colour for seen, item in pairs])),
    }


def _draw_one(scene: Scene) -> Array:
    picture = background_picture(scene.background)
    for item in scene.items:
        dx, dy = offsets(CENTRES[item.place])
        distance = signed_distance(item.shape, dx, dy, RADII[item.size])
        cover = np.clip(STROKE / 2 + 0.5 - np.abs(distance + STROKE / 2), 0, 1)[..., None]
        picture = picture + (np.array(PALETTE[item.colour], np.float32) - picture) * cover
    return picture.astype(np.float32)


@cache
def _drawings(background: str, size: str, place: str) -> tuple[list[Seen], Array]:
    """Every object that may sit there in both styles, and its drawing [84, 64, 64, 3]."""
    forms = [Seen(*choice) for choice in product(STYLES, SHAPES, COLOURS)]
    scenes = [Scene((Item(one.shape, one.colour, size, place),), background) for one in forms]
    half = len(scenes) // 2
    return forms, np.concatenate([draw(scenes[:half]), draw_outlines(scenes[half:])])
