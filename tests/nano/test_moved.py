"""Objects off their places: where they stand, and what is said of pictures that do not follow their edges."""

from __future__ import annotations

import numpy as np

from training.adapter import HELD_OUT_LEAST, held_out
from training.drawing import CENTRES, SIDE, draw
from training.moved import LEAST_RADIUS, MOST, MOST_RADIUS, conditions, shares
from training.scenes import is_held_out

MOVED = held_out()[::8]


def test_moved_objects_are_elsewhere_and_inside() -> None:
    for one in MOVED:
        (item,) = one.scene.items
        step = np.abs(np.subtract(one.centre, CENTRES[item.place])).max()
        assert is_held_out(one.scene)
        assert HELD_OUT_LEAST <= step <= MOST
        assert LEAST_RADIUS <= one.radius <= MOST_RADIUS
        assert one.radius <= min(one.centre)
        assert max(one.centre) <= SIDE - one.radius


def test_their_own_drawings_follow_their_edges() -> None:
    found = shares(np.stack([one.draw() for one in MOVED]), MOVED)
    assert set(found.values()) == {1.0}
    assert conditions(MOVED).shape == (len(MOVED), 1, SIDE, SIDE)


def test_drawings_at_the_captions_place_do_not() -> None:
    found = shares(draw([one.scene for one in MOVED]), MOVED)
    assert found["follows"] == 0.0
    assert found["overlap"] < 0.6


def test_another_shape_and_colour_are_noticed() -> None:
    others = [*MOVED[len(MOVED) // 2 :], *MOVED[: len(MOVED) // 2]]
    found = shares(np.stack([one.draw() for one in others]), MOVED)
    assert found["shape"] < 0.5
    assert found["colour"] < 0.9
