"""Objects off the places of the grammar, at sizes between its two: what no caption can say, but edges can."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from md_export.models.adapter import edges
from training.detector import find_background, object_mask
from training.drawing import CENTRES, SIDE, background_picture, layers_at, painted
from training.masks import components
from training.reading import FILLED, Seen
from training.scenes import COLOURS, SHAPES, Scene

Array = NDArray[np.float32]

#: An object is moved by up to so many pixels each way, and its radius lies in this range; small ones are below BETWEEN.
MOST, LEAST_RADIUS, BETWEEN, MOST_RADIUS = 10, 9.0, 11.5, 14.0
#: An object follows its edges where the mask that is seen covers this much of what both masks cover together.
LEAST_OVERLAP = 0.75


@dataclass(frozen=True)
class Moved:
    """A scene whose one object stands at ``centre`` (x, y) with ``radius``, in pixels, whatever its caption says."""

    scene: Scene
    centre: tuple[float, float]
    radius: float

    def draw(self) -> Array:
        """The picture [64, 64, 3] in [0, 1]."""
        (item,) = self.scene.items
        return _drawn(item.shape, item.colour, self.scene.background, self.centre, self.radius)


def move(scene: Scene, rng: np.random.Generator, least: int = 0) -> Moved:
    """``scene`` with its object elsewhere inside the picture, at least so many pixels away along x or y."""
    (item,) = scene.items
    low, high = (LEAST_RADIUS, BETWEEN) if item.size == "small" else (BETWEEN, MOST_RADIUS)
    radius = float(rng.uniform(low, high))
    start = np.array(CENTRES[item.place])
    while True:
        centre = start + rng.integers(-MOST, MOST, 2, endpoint=True)
        inside = radius <= centre.min() and centre.max() <= SIDE - radius
        if inside and np.abs(centre - start).max() >= least:
            return Moved(scene, (float(centre[0]), float(centre[1])), radius)


def conditions(moved: Sequence[Moved]) -> Tensor:
    """Their edges, [N, 1, 64, 64]."""
    return torch.from_numpy(np.concatenate([edges(one.draw()) for one in moved]))


def shares(pictures: Array, moved: Sequence[Moved]) -> dict[str, float]:
    """Share of objects that stand where and as large as their edges say, and of those with shape and colour right.

    Independent of the networks.
    """
    pairs = list(zip(pictures, moved, strict=True))
    overlaps = [overlap(picture, one) for picture, one in pairs]
    seen = [read(picture, one) for picture, one in pairs]
    items = [one.scene.items[0] for one in moved]
    return {
        "follows": float(np.mean([value >= LEAST_OVERLAP for value in overlaps])),
        "overlap": float(np.mean(overlaps)),
        "shape": float(np.mean([found.shape == item.shape for found, item in zip(seen, items, strict=True)])),
        "colour": float(np.mean([found.colour == item.colour for found, item in zip(seen, items, strict=True)])),
    }


def overlap(picture: Array, moved: Moved) -> float:
    """Of the largest object that is seen and the one that should be there: what both cover / what either covers."""
    wanted = _mask(moved.draw())
    seen = _mask(picture)
    return float((seen & wanted).sum() / max((seen | wanted).sum(), 1))


def read(picture: Array, moved: Moved) -> Seen:
    """What the object is: the nearest drawing of all shapes and colours, where the edges say that it stands."""
    forms = [Seen(FILLED, shape, colour) for shape in SHAPES for colour in COLOURS]
    drawn = [_drawn(one.shape, one.colour, moved.scene.background, moved.centre, moved.radius) for one in forms]
    errors = np.abs(np.stack(drawn) - picture).mean((1, 2, 3))
    return forms[int(errors.argmin())]


def _mask(picture: Array) -> NDArray[np.bool_]:
    parts = components(object_mask(picture, find_background(picture)))
    return max(parts, key=lambda part: int(part.sum()), default=np.zeros(picture.shape[:2], bool))


def _drawn(shape: str, colour: str, background: str, centre: tuple[float, float], radius: float) -> Array:
    return painted(background_picture(background), colour, layers_at(shape, radius, centre))
