"""Reads a picture back: background, then for each object its shape, colour, size and place.

Classical and independent of the networks: what differs from the (possibly shadowed)
background is an object; its colour is the nearest of the palette, its shape the nearest
of the equal-area templates, its place that of its centroid.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from training.drawing import CENTRES, GRADIENTS, PALETTE, background_picture, item_cover
from training.masks import Mask, components, eroded, sampled
from training.scenes import SHAPES, Item, Scene

Array = NDArray[np.float32]

#: How far (RGB distance) a pixel must be from every shadow of the background to belong to an object.
CONTRAST = 0.20
#: Objects are at least this many pixels.
LEAST_AREA = 60
#: Side of the normalised template that shapes are compared on.
TEMPLATE = 28


@dataclass(frozen=True)
class Found:
    """One object as seen: the centroid (x, y) and the area are in pixels."""

    shape: str
    colour: str
    centre: tuple[float, float]
    area: int

    @property
    def place(self) -> str:
        """The nearest of the five places."""
        return min(CENTRES, key=lambda name: float(np.hypot(*np.subtract(CENTRES[name], self.centre))))


@dataclass(frozen=True)
class Verdict:
    """What is right about a picture of a scene; with two objects, for both of them."""

    count: bool
    shape: bool
    colour: bool
    place: bool
    background: bool

    @property
    def right(self) -> bool:
        """Shape, colour and place (relation) are all right, and nothing else is there."""
        return self.count and self.shape and self.colour and self.place


def detect(picture: Array) -> tuple[str, list[Found]]:
    """Background name and objects, left-top first, of a picture [64, 64, 3] in [0, 1]."""
    background = find_background(picture)
    parts = components(object_mask(picture, background))
    found = [_describe(picture, part) for part in parts if part.sum() >= LEAST_AREA]
    return background, sorted(found, key=lambda item: sum(item.centre))


def judge(picture: Array, scene: Scene) -> Verdict:
    """Compares what is seen in a picture [64, 64, 3] in [0, 1] with the scene it should show."""
    background, found = detect(picture)
    wanted = sorted(scene.items, key=lambda item: sum(CENTRES[item.place]))
    if len(found) != len(wanted):
        return Verdict(False, False, False, False, background == scene.background)
    pairs = list(zip(found, wanted, strict=True))
    return Verdict(
        count=True,
        shape=all(seen.shape == item.shape for seen, item in pairs),
        colour=all(seen.colour == item.colour for seen, item in pairs),
        place=all(seen.place == item.place for seen, item in pairs),
        background=background == scene.background,
    )


def find_background(picture: Array) -> str:
    """The background whose colours the picture's four corners are nearest to."""
    corners = (slice(0, 5), slice(-5, None))

    def distance(name: str) -> float:
        error = picture - background_picture(name)
        return float(np.mean([np.abs(error[rows, columns]).mean() for rows in corners for columns in corners]))

    return min(GRADIENTS, key=distance)


def object_mask(picture: Array, background: str) -> Mask:
    """Pixels [64, 64] that no shadow (factor 0.6 to 1) of the background explains."""
    base = background_picture(background)
    along = (picture * base).sum(-1) / (base * base).sum(-1)
    shade = np.clip(along, 0.6, 1.0)[..., None]
    return np.asarray(np.linalg.norm(picture - shade * base, axis=-1) > CONTRAST)


def _describe(picture: Array, part: Mask) -> Found:
    y, x = np.nonzero(part)
    centre = (float(x.mean() + 0.5), float(y.mean() + 0.5))
    return Found(_shape(part), _colour(picture, part), centre, int(part.sum()))


def _colour(picture: Array, part: Mask) -> str:
    """The palette colour nearest to the median colour of the object's inside, whatever the light."""
    inner = eroded(part, times=2)
    seen = np.median(picture[inner if inner.sum() >= 12 else part], axis=0)
    return min(PALETTE, key=lambda name: _distance_any_light(seen, np.array(PALETTE[name])))


def _distance_any_light(seen: Array, colour: Array) -> float:
    light = np.clip(seen @ colour / (colour @ colour), 0.75, 1.15)
    return float(np.linalg.norm(seen - light * colour))


def _shape(part: Mask) -> str:
    seen = _normalised(part.astype(np.float32))
    return min(SHAPES, key=lambda shape: min(float(np.abs(seen - form).mean()) for form in _templates(shape)))


@cache
def _templates(shape: str) -> tuple[Array, ...]:
    """What the shape looks like at each size, normalised."""
    covers = (item_cover(Item(shape, "red", size, "center")) for size in ("large", "medium", "small"))
    return tuple(_normalised((cover > 0.5).astype(np.float32)) for cover in covers)


def _normalised(mask: Array) -> Array:
    """The mask resampled to [28, 28] so that its area and centroid are always the same."""
    area = mask.sum()
    centre = [(mask * axis).sum() / area for axis in np.indices(mask.shape)]
    reach = np.linspace(-1.15, 1.15, TEMPLATE) * np.sqrt(area)
    y, x = np.meshgrid(centre[0] + reach, centre[1] + reach, indexing="ij")
    return sampled(mask, y, x)
