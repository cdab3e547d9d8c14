from __future__ import annotations

import math

import pytest

from md_export.engine.search.budget import Budget
from md_export.engine.search.choice import Base, Candidate, Form, Module, Point, point_of
from md_export.engine.search.quality import Quality, next_aim, tries

MODULE = Module("unet", "conv", 8, tuple(Candidate(Form("int8"), size, 1.0, 1.0) for size in (1,)))


def point(size: int) -> Point:
    """Predicted to have as many decibels."""
    noise = 10 ** (-size / 10)
    return point_of([MODULE], [Candidate(Form("int8", "block", block_size=size), size, noise, noise)], Base())


def test_quality_keeps_to_every_floor_of_a_budget() -> None:
    found = Quality(34.2, {"unet": 20.5, "vae_decoder": 18.0})
    assert found.keeps_to(Budget(picture_db=34))
    assert not found.keeps_to(Budget(picture_db=35))
    assert not found.keeps_to(Budget(picture_db=34, snr_db=19))
    assert found.keeps_to(Budget(bits=4))
    assert found.is_close(Budget(picture_db=34))
    assert not found.is_close(Budget(picture_db=30))


def test_the_next_aim_makes_good_what_was_missed() -> None:
    # Predicted: 40 dB, of the component 30.
    predicted = point_of([MODULE], [Candidate(Form("int8"), 1, 1e-4, 1e-3)], Base())
    budget = Budget(picture_db=34, snr_db=20)
    aim = next_aim(budget, predicted, Quality(30, {"unet": 22}))
    assert aim.picture_db == pytest.approx(44)
    assert aim.snr_db == pytest.approx(28)
    assert next_aim(Budget(picture_db=1), predicted, Quality(90, {})).picture_db == pytest.approx(0.1)
    assert next_aim(Budget(bits=4), predicted, Quality(30, {})) == Budget(bits=4)


def test_tries_end_close_above_the_budget() -> None:
    # Measured is always seven decibels less than aimed at.
    def measure(made: Point) -> Quality:
        return Quality(made.bytes - 7, {})

    budget = Budget(picture_db=30)
    found = list(tries(budget, budget, 6, lambda aim: point(math.ceil(aim.picture_db or 0)), measure))
    assert [one[2].picture_db for one in found] == [23, 30]


def test_tries_end_where_the_same_choice_comes_again() -> None:
    budget = Budget(picture_db=30)
    found = list(tries(budget, budget, 6, lambda _: point(5), lambda _: Quality(20, {})))
    assert len(found) == 1


def test_tries_are_counted() -> None:
    budget = Budget(picture_db=30)
    sizes = iter(range(2, 100))
    found = list(tries(budget, budget, 3, lambda _: point(next(sizes)), lambda _: Quality(20, {})))
    assert len(found) == 3
