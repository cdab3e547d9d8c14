"""The table of stored prompts: what a recipe may say, what the options make of it, and what older recipes keep."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from md_export.errors import RecipeError
from md_export.spec.prompts import PromptPlan
from md_export.spec.recipe import Recipe
from md_export.spec.recipe_file import load_recipe, recipe_from_dict, recipe_to_dict
from md_export.spec.sampler import ManySteps, Step
from md_export.spec.shipped_files import builtin_recipe

ALL = ("text_encoder", "text_encoder_2", "vae_encoder", "unet", "vae_decoder")


@pytest.fixture
def recipe() -> Recipe:
    return load_recipe(builtin_recipe("onnx", "fp32"))


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ((), "empty"),
        (("a", "b", "a"), "'a' is named 2 times"),
        (("a", "b" * 5000), r"\[prompts\] stored: one has more than 4,096"),
        (tuple(map(str, range(5000))), r"\[prompts\] stored times seeds"),
        (("a\x1b[1m",), "holds a control character"),
    ],
)
def test_prompts_that_cannot_be_stored(stored: tuple[str, ...], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        PromptPlan(stored)


@pytest.mark.parametrize(
    ("guidance", "negative", "embedded", "texts"),
    [
        (1.0, None, False, ("a", "b")),
        (7.5, None, False, ("", "a", "b")),
        (7.5, "b", False, ("b", "a")),
        (7.5, None, True, ("a", "b")),
    ],
)
def test_the_prompt_of_guidance_comes_first(
    guidance: float, negative: str | None, embedded: bool, texts: tuple[str, ...]
) -> None:
    steps = ManySteps("ddim", guidance, 1.0, (Step(1, 1, 1),), 1.0, "epsilon", negative, embedded)
    assert PromptPlan(("a", "b")).texts(steps) == texts
    assert PromptPlan(("a", "b")).texts(None) == ("a", "b")


def test_a_recipe_file_has_a_table(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('name = "mine"\nextends = "onnx-fp32"\n[prompts]\nstored = ["a", "b"]\ntext_encoder = false\n')
    found = load_recipe(file)
    assert found.prompts == PromptPlan(("a", "b"), False)
    assert recipe_from_dict(recipe_to_dict(found), "x") == found
    file.write_text(file.read_text().replace("stored", "texts"))
    with pytest.raises(RecipeError, match=r"\[prompts\] unknown field 'texts'; did you mean|\[prompts\].*stored"):
        load_recipe(file)


def test_a_recipe_without_the_table_is_written_as_before(recipe: Recipe) -> None:
    assert "prompts" not in recipe_to_dict(recipe)
    assert "prompts" in recipe_to_dict(recipe.prompted(("a",)))


def test_text_encoders_are_left_out_of_what_a_checkpoint_has(recipe: Recipe) -> None:
    assert recipe.prompted(("a",)).completed(ALL).components == ALL
    assert recipe.prompted(("a",), False).completed(ALL).components == ("vae_encoder", "unet", "vae_decoder")
    part = recipe.narrowed(("text_encoder", "unet")).prompted(("a",), False)
    assert part.completed(ALL).components == ("unet",)


def test_options_add_to_the_recipe(recipe: Recipe) -> None:
    assert recipe.prompted(()) == recipe
    with pytest.raises(RecipeError, match="--no-text-encoder needs stored prompts"):
        recipe.prompted((), False)
    stored = recipe.prompted(("a",))
    assert stored.prompted((), False).prompts == PromptPlan(("a",), False)
    assert stored.prompted(("b",)).prompts == PromptPlan(("b",))
    assert stored.prompted((), False).prompted(("b",)).prompts == PromptPlan(("b",), False)


def test_nothing_would_be_left(recipe: Recipe) -> None:
    with pytest.raises(RecipeError, match="without text encoders nothing is left of text_encoder"):
        recipe.narrowed(("text_encoder",)).prompted(("a",), False)
    assert dataclasses.replace(recipe, prompts=PromptPlan(("a",))).narrowed(("text_encoder",)).prompts
