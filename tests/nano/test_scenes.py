"""The grammar, the held-out rule and the drawing."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from training.drawing import CENTRES, SIDE, draw, item_cover
from training.scenes import (
    COLOURS,
    PLACES,
    RELATIONS,
    SHAPES,
    all_pairs,
    all_singles,
    caption,
    caption_variants,
    is_held_out,
    pair,
    single,
)

SCENES = (*all_singles(), *all_pairs())


def test_counts() -> None:
    assert len(list(all_singles())) == 1680
    assert len(SCENES) == 1680 + 27552


def test_captions_are_natural_and_unique() -> None:
    assert caption(single("circle", "red", "large", "left", "white")) == (
        "a large red circle on the left, white background"
    )
    two = pair(("ring", "orange"), "left of", ("square", "blue"), "night")
    assert caption(two) == "an orange ring left of a blue square, night background"
    captions = [caption(scene) for scene in SCENES]
    assert len(set(captions)) == len(captions)


def test_only_defaults_are_left_unsaid() -> None:
    plain = single("star", "blue", "large", "center", "white")
    assert set(caption_variants(plain)) >= {"a blue star", "a large blue star", caption(plain)}
    assert caption_variants(plain)[0] == caption(plain)
    said = [text for scene in SCENES for text in caption_variants(scene)]
    assert max(Counter(said).values()) == 1, "one caption must mean one picture"


def test_a_tenth_is_held_out_evenly() -> None:
    held = [scene.items[0] for scene in all_singles() if is_held_out(scene)]
    combinations = {(item.shape, item.colour, item.place) for item in held}
    assert 0.08 < len(combinations) / (len(SHAPES) * len(COLOURS) * len(PLACES)) < 0.12
    assert {item.shape for item in held} == set(SHAPES)
    assert {item.colour for item in held} == set(COLOURS)
    assert {item.place for item in held} == set(PLACES)


def test_every_shape_and_colour_is_trained_on_somewhere() -> None:
    trained = {(s.items[0].shape, s.items[0].colour) for s in all_singles() if not is_held_out(s)}
    assert len(trained) == len(SHAPES) * len(COLOURS)


def test_a_pair_with_a_held_out_object_is_held_out() -> None:
    held = next(scene for scene in all_singles() if is_held_out(scene) and scene.items[0].place == "left").items[0]
    other = next(shape for shape in SHAPES if shape != held.shape)
    assert is_held_out(pair((held.shape, held.colour), "left of", (other, held.colour), "sky"))


@pytest.mark.parametrize("relation", RELATIONS)
def test_relations_mean_what_they_say(relation: str) -> None:
    first, second = (CENTRES[item.place] for item in pair(("ring", "red"), relation, ("star", "red"), "sky").items)
    expected = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}[relation]
    assert tuple(np.sign(np.subtract(first, second))) == expected


def test_pictures_are_deterministic_smooth_and_in_range() -> None:
    scenes = [single("star", "red", "small", "top", "sky"), pair(("ring", "pink"), "above", ("cross", "red"), "gray")]
    pictures = draw(scenes)
    assert pictures.shape == (2, SIDE, SIDE, 3)
    assert pictures.min() >= 0 and pictures.max() <= 1
    assert np.array_equal(pictures, draw(scenes))
    cover = item_cover(scenes[0].items[0])
    assert ((cover > 0.05) & (cover < 0.95)).sum() > 20, "edges must be anti-aliased"


@pytest.mark.parametrize("shape", SHAPES)
def test_objects_stay_inside_the_picture(shape: str) -> None:
    for place in ("left", "right", "top"):
        cover = item_cover(single(shape, "red", "large", place, "sky").items[0])
        rim = np.concatenate([cover[0], cover[-1], cover[:, 0], cover[:, -1]])
        assert (rim > 0.5).sum() <= 2, "a tip may touch the rim, no more"
