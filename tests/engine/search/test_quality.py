from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

from md_export.engine.export import export
from md_export.engine.request import Resources
from md_export.engine.search.frontier import Base, Candidate, Form, Module, Point, point_of
from md_export.engine.search.quality import Quality, build, judged, next_aim, sealed, tries
from md_export.engine.search.request import Budget
from md_export.engine.search.results import chosen_recipe
from md_export.errors import RuntimeFault
from md_export.spec.manifest import read_manifest
from md_export.spec.recipe_file import load_recipe
from md_export.spec.shipped_files import builtin_recipe

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


def command(code: str) -> str:
    return f'{sys.executable} -c "{code}"'


def test_the_last_line_is_the_score(tmp_path: Path) -> None:
    assert judged(command("import sys; print('seen', sys.argv[1]); print(0.75)"), tmp_path) == 0.75


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("no-such-program-at-all", "cannot be started"),
        (command("raise SystemExit('no pictures')"), "no pictures"),
        (command("print('good')"), "not a score"),
        (command("print('nan')"), "not a score"),
        (command("pass"), "not a score"),
        ('"', "cannot be started"),
    ],
)
def test_a_judge_that_gives_none_is_one_clear_error(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(RuntimeFault, match=said):
        judged(text, tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("own_cache")
def test_a_component_that_did_not_change_is_built_once(nano: Path, tmp_path: Path) -> None:
    """Two tries that differ in one component, and the one that was found with its thresholds."""
    recipe = load_recipe(builtin_recipe("onnx", "fp16")).narrowed(("text_encoder", "vae_decoder"))
    smaller = chosen_recipe(recipe, {"vae_decoder": {"decoder.conv_in": Form("int8")}}, recipe.name)
    told: list[str] = []
    first = build(recipe, nano, tmp_path / "1", None, told.append, Resources())
    second = build(smaller, nano, tmp_path / "2", None, told.append, Resources())
    found = sealed(smaller, second.quality, Budget(snr_db=10.0))
    export(found, nano, tmp_path / "found", None, told.append)
    assert [line for line in told if line.startswith("to build: ")] == [
        "to build: golden cases, text_encoder, vae_decoder, verify; from the cache: nothing",
        "to build: vae_decoder, verify; from the cache: golden cases, text_encoder",
        "to build: verify; from the cache: golden cases, text_encoder, vae_decoder",
    ]
    assert first.manifest.artifacts[0] == second.manifest.artifacts[0]
    assert read_manifest(tmp_path / "found").artifacts == second.manifest.artifacts
    assert read_manifest(tmp_path / "found").recipe.tolerances["vae_decoder"].snr_db == 10.0
