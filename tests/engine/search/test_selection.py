"""The curve and the choices on it against every choice there is."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.search.cases import BASE, FORMS, all_points, problems
from md_export.engine.search.frontier import Base, Candidate, Module, Point, curve, decibels, power, uniform
from md_export.engine.search.request import Budget
from md_export.engine.search.selection import choose, first_passing, keeps_to
from md_export.errors import UsageError

FINE, COARSE = FORMS[0], FORMS[2]
few = settings(max_examples=60, deadline=None)


def two(path: str, coarse: tuple[int, float], fine: tuple[int, float], component: str = "unet") -> Module:
    """A module with two forms, given as bytes and noise; its component is as noisy as the picture."""
    forms = ((COARSE, coarse), (FINE, fine))
    return Module(component, path, 100, tuple(Candidate(form, size, noise, noise) for form, (size, noise) in forms))


@few
@given(problems())
def test_no_choice_beats_a_point_of_the_curve(modules: tuple[Module, ...]) -> None:
    points = curve(modules, BASE)
    for point, other in itertools.product(points, all_points(modules, BASE)):
        assert other.bytes > point.bytes or other.noise >= point.noise


@few
@given(problems())
def test_the_curve_is_convex_and_falls(modules: tuple[Module, ...]) -> None:
    points = curve(modules, BASE)
    for one, next_one in itertools.pairwise(points):
        assert one.bytes < next_one.bytes
        assert one.noise >= next_one.noise
    slopes = [(a.noise - b.noise) / (b.bytes - a.bytes) for a, b in itertools.pairwise(points)]
    assert all(first >= second - 1e-9 for first, second in itertools.pairwise(slopes))


@few
@given(problems(), st.randoms(use_true_random=False))
def test_order_does_not_matter(modules: tuple[Module, ...], source: random.Random) -> None:
    def shuffled(items: tuple[Module, ...] | tuple[Candidate, ...]) -> list[object]:
        return source.sample(items, len(items))

    mixed = [
        Module(one.component, one.path, one.weights, tuple(shuffled(one.candidates)))  # type: ignore[arg-type]
        for one in source.sample(modules, len(modules))
    ]
    assert [known(point) for point in curve(modules, BASE)] == [known(point) for point in curve(mixed, BASE)]
    budget = Budget(bytes=curve(modules, BASE)[0].bytes + 7)
    assert known(choose(modules, budget, BASE)) == known(choose(mixed, budget, BASE))


def known(point: Point) -> tuple[object, ...]:
    return point.bytes, point.noise, point.own_noise, point.forms


@few
@given(problems())
def test_a_budget_on_the_curve_gives_the_optimum(modules: tuple[Module, ...]) -> None:
    for point in curve(modules, BASE):
        assert choose(modules, Budget(bytes=point.bytes), BASE).noise == point.noise


@few
@given(problems(), st.integers(41, 140))
def test_the_best_picture_within_bytes(modules: tuple[Module, ...], size: int) -> None:
    points = [point for point in curve(modules, BASE) if point.bytes <= size]
    if not points:
        with pytest.raises(UsageError, match=rf"write bytes={curve(modules, BASE)[0].bytes} or bits="):
            choose(modules, Budget(bytes=size), BASE)
        return
    found = choose(modules, Budget(bytes=size), BASE)
    assert found.bytes <= size
    assert found.noise <= points[-1].noise


@few
@given(problems(), st.floats(-16, 8))
def test_the_fewest_bytes_for_a_picture(modules: tuple[Module, ...], picture_db: float) -> None:
    points = curve(modules, BASE)
    able = [point for point in points if point.noise <= power(picture_db)]
    budget = Budget(picture_db=picture_db)
    if not able:
        with pytest.raises(UsageError, match="write picture="):
            choose(modules, budget, BASE)
        return
    found = choose(modules, budget, BASE)
    assert keeps_to(found, budget)
    assert found.bytes <= able[0].bytes


@few
@given(problems(), st.floats(-16, 8), st.floats(-16, 8), st.integers(41, 140))
def test_floors_and_limits_hold_together(
    modules: tuple[Module, ...], picture_db: float, snr_db: float, size: int
) -> None:
    budget = Budget(picture_db, snr_db, bytes=size)
    try:
        found = choose(modules, budget, BASE)
    except UsageError:
        # More room and fewer wishes are never refused where all of it can be had.
        assert not any(keeps_to(point, budget) for point in curve(modules, BASE))
        return
    assert keeps_to(found, budget)


@few
@given(problems(), st.floats(-16, 8))
def test_a_floor_for_each_component(modules: tuple[Module, ...], snr_db: float) -> None:
    budget = Budget(snr_db=snr_db)
    able = [point for point in all_points(modules, BASE) if keeps_to(point, budget)]
    if not able:
        with pytest.raises(UsageError, match=r"(unet|vae_decoder) is predicted at .*write snr="):
            choose(modules, budget, BASE)
        return
    found = choose(modules, budget, BASE)
    assert keeps_to(found, budget)
    # One module's step, at most, more than any choice needs, for each component.
    widest = max(one.bytes for module in modules for one in module.candidates)
    assert found.bytes - min(point.bytes for point in able) < 2 * widest


def test_bytes_go_where_they_help_most() -> None:
    modules = [two("far", (10, 1.0), (20, 0.9)), two("near", (10, 1.0), (20, 0.1))]
    assert choose(modules, Budget(bytes=30)).forms == {"unet": {"far": COARSE, "near": FINE}}


def test_what_is_left_is_spent() -> None:
    """The best step of all does not fit, the second does: the curve alone would keep both coarse."""
    modules = [two("large", (10, 8.0), (110, 0.0)), two("small", (10, 0.2), (20, 0.1))]
    assert choose(modules, Budget(bytes=40)).forms == {"unet": {"large": COARSE, "small": FINE}}


def test_what_a_later_step_made_needless_is_taken_back() -> None:
    """Along the curve the first module improves first; the second alone suffices."""
    modules = [two("first", (10, 1.0), (20, 0.1)), two("second", (10, 8.0), (110, 0.0))]
    found = choose(modules, Budget(picture_db=decibels(1.0)))
    assert found.forms == {"unet": {"first": COARSE, "second": FINE}}


def test_bytes_are_not_saved_on_the_largest_first() -> None:
    """Noise of 1 may stay: that of the largest saves 50 bytes, that of the two others 80."""
    modules = [two("a", (10, 1.0), (60, 0.0)), two("b", (10, 0.5), (50, 0.0)), two("c", (10, 0.5), (50, 0.0))]
    found = choose(modules, Budget(picture_db=decibels(1.0)))
    assert found.forms == {"unet": {"a": FINE, "b": COARSE, "c": COARSE}}


def test_only_the_component_that_falls_short_improves() -> None:
    modules = [two("a", (10, 0.5), (20, 0.0), "unet"), two("a", (10, 0.01), (11, 0.0), "vae_decoder")]
    found = choose(modules, Budget(snr_db=10.0))
    assert {name: forms["a"] for name, forms in found.forms.items()} == {"unet": FINE, "vae_decoder": COARSE}


def test_bits_are_of_the_weights_alone() -> None:
    modules = [two("a", (50, 1.0), (200, 0.0)), two("b", (50, 1.0), (100, 0.2))]
    found = choose(modules, Budget(bits=6.0), Base(bytes=10_000))
    assert found.forms["unet"] == {"a": COARSE, "b": FINE}
    assert found.bits == 6.0
    assert found.bytes == 10_150
    with pytest.raises(UsageError, match=r"makes 10100 bytes, 4\.000 bits per weight; write bytes=10100 or bits=4,"):
        choose(modules, Budget(bits=3.9), Base(bytes=10_000))


def test_quality_that_does_not_fit_says_what_it_needs() -> None:
    modules = [two("a", (10, 0.1), (20, 0.0)), two("b", (10, 0.1), (20, 0.05))]
    with pytest.raises(UsageError, match=r"picture at least 12 dB, at most 39 bytes: this quality needs 40 bytes"):
        choose(modules, Budget(picture_db=12.0, bytes=39))
    with pytest.raises(UsageError, match=r"predicted at 13\.0 dB; write picture=13 or less"):
        choose(modules, Budget(picture_db=20.0))
    assert choose(modules, Budget(picture_db=13.0)).bytes == 40


def test_uniform_leaves_a_module_that_lacks_the_form_at_its_largest() -> None:
    odd = Module("unet", "odd", 100, (Candidate(FINE, 20, 0.0, 0.0), Candidate(FORMS[1], 12, 0.5, 0.5)))
    point = uniform([two("a", (10, 1.0), (20, 0.0)), odd], COARSE, Base(noise=0.25))
    assert (point.bytes, point.noise) == (30, 1.25)


def test_sums_do_not_round_on_the_way() -> None:
    noises = (1.0, *[1e-16] * 64)
    modules = [two(f"{index}", (1, noise), (2, noise)) for index, noise in enumerate(noises)]
    assert curve(modules)[0].noise == 1.0 + 64e-16 != sum(noises)


@pytest.mark.parametrize("least", range(1, 42))
def test_the_first_that_passes_is_found_by_halving(least: int) -> None:
    points = curve([two(f"{index}", (1, 1.0), (2, 0.0)) for index in range(40)])
    asked = []

    def passes(point: Point) -> bool:
        asked.append(point)
        return point.bytes >= 39 + least

    found = first_passing(points, passes)
    assert found is not None
    assert found.bytes == 39 + least
    assert len(asked) <= 7


def test_where_none_passes_there_is_none() -> None:
    assert first_passing(curve([two("a", (1, 1.0), (2, 0.0))]), lambda _: False) is None
    assert first_passing((), lambda _: True) is None


@pytest.mark.parametrize(("size", "noise"), [(-1, 0.0), (1, -0.1), (1, float("nan")), (1, float("inf"))])
def test_what_is_no_measurement_is_refused(size: int, noise: float) -> None:
    with pytest.raises(ValueError, match="no measurement"):
        Candidate(FINE, size, noise, 0.0)


def test_modules_are_each_there_once() -> None:
    one = two("a", (1, 1.0), (2, 0.0))
    with pytest.raises(ValueError, match="each once"):
        curve([one, one])
    with pytest.raises(ValueError, match="each once"):
        curve([])
    with pytest.raises(ValueError, match="two of one form"):
        Module("unet", "a", 1, (one.candidates[0], one.candidates[0]))


def test_no_noise_is_exact() -> None:
    assert decibels(0.0) == 999.0
    assert decibels(power(34.0)) == pytest.approx(34.0)
