"""The detector reads drawn pictures almost without error, and does not say yes to wrong ones."""

from __future__ import annotations

import numpy as np
import pytest

from training.detector import detect, judge
from training.drawing import background_picture, draw
from training.scenes import BACKGROUNDS, Scene, all_pairs, all_singles, pair, single

SINGLES = list(all_singles())[::11]
PAIRS = list(all_pairs())[::347]


@pytest.mark.parametrize("scenes", [SINGLES, PAIRS], ids=["one object", "two objects"])
def test_drawn_pictures_are_read_right(scenes: list[Scene]) -> None:
    verdicts = [judge(picture, scene) for picture, scene in zip(draw(scenes), scenes, strict=True)]
    assert np.mean([verdict.right and verdict.background for verdict in verdicts]) >= 0.99


def test_a_little_noise_and_blur_change_nothing() -> None:
    rng = np.random.default_rng(0)
    pictures = draw(PAIRS)
    blurred = (pictures + np.roll(pictures, 1, 1) + np.roll(pictures, 1, 2)) / 3
    rough = (blurred + rng.normal(0, 0.02, blurred.shape)).clip(0, 1).astype(np.float32)
    assert np.mean([judge(picture, scene).right for picture, scene in zip(rough, PAIRS, strict=True)]) >= 0.97


@pytest.mark.parametrize(
    ("other", "wrong"),
    [
        (single("square", "red", "large", "left", "sky"), "shape"),
        (single("circle", "pink", "large", "left", "sky"), "colour"),
        (single("circle", "red", "large", "right", "sky"), "place"),
        (single("circle", "red", "large", "left", "night"), "background"),
        (pair(("circle", "red"), "left of", ("ring", "blue"), "sky"), "count"),
    ],
)
def test_each_mistake_is_seen(other: Scene, wrong: str) -> None:
    verdict = judge(draw([other])[0], single("circle", "red", "large", "left", "sky"))
    assert not getattr(verdict, wrong)
    assert verdict.right == (wrong == "background")


def test_swapped_objects_are_wrong() -> None:
    asked = pair(("circle", "red"), "left of", ("ring", "blue"), "sky")
    drawn = pair(("circle", "red"), "right of", ("ring", "blue"), "sky")
    verdict = judge(draw([drawn])[0], asked)
    assert verdict.count and not verdict.right


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_an_empty_picture_holds_no_objects(background: str) -> None:
    assert detect(background_picture(background)) == (background, [])
