"""Reads what is drawn at a known place, in one of two styles: the nearest of all drawings that may be there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
from numpy.typing import NDArray

from training.drawing import CENTRES, draw
from training.scenes import COLOURS, SHAPES, Item, Scene

Array = NDArray[np.float32]
#: Scenes to pictures [N, 64, 64, 3] in [0, 1].
Draw = Callable[[Sequence[Scene]], Array]

#: The style of the checkpoint.
FILLED = "filled"
#: Half the side of the square around an object's centre that holds all of it, and nothing of another.
_REACH = 16


@dataclass(frozen=True)
class Seen:
    """How one object is drawn, and what it is."""

    style: str
    shape: str
    colour: str


def read(picture: Array, scene: Scene, style: str, draw_styled: Draw) -> list[Seen]:
    """Each object of a picture [64, 64, 3] in [0, 1]: the nearest of all shapes and colours, filled and in ``style``.

    Independent of the networks. Where the objects of ``scene`` sit, and on what background, is taken from it.
    """
    found = []
    for item in scene.items:
        forms, drawn = _drawings(style, draw_styled, scene.background, item.size, item.place)
        errors = np.abs(drawn[:, *window(item)] - picture[window(item)]).mean((1, 2, 3))
        found.append(forms[int(errors.argmin())])
    return found


def window(item: Item) -> tuple[slice, slice]:
    """Rows and columns of the square around an object."""
    x, y = (int(value) for value in CENTRES[item.place])
    return slice(max(0, y - _REACH), y + _REACH), slice(max(0, x - _REACH), x + _REACH)


def share(right: Sequence[bool]) -> float:
    """The share of True."""
    return float(np.mean(right))


@cache
def _drawings(style: str, draw_styled: Draw, background: str, size: str, place: str) -> tuple[list[Seen], Array]:
    """Every object that may sit there in both styles, and its drawing [84, 64, 64, 3]."""
    forms = [Seen(*choice) for choice in product((FILLED, style), SHAPES, COLOURS)]
    scenes = [Scene((Item(one.shape, one.colour, size, place),), background) for one in forms]
    half = len(scenes) // 2
    return forms, np.concatenate([draw(scenes[:half]), draw_styled(scenes[half:])])
