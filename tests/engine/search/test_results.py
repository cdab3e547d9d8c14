"""What is written down loads as what was chosen."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.search.cases import FORMS
from md_export.engine.search.frontier import Form
from md_export.engine.search.results import chosen_recipe, chosen_scheme, recipe_toml
from md_export.errors import RecipeError
from md_export.spec.recipe import Recipe
from md_export.spec.recipe_file import load_recipe, recipe_from_toml
from md_export.spec.scheme import QuantScheme
from md_export.spec.shipped_files import builtin_recipe, builtin_recipes, recipe_file

BASE = load_recipe(builtin_recipe("coreml", "palette4"))
INT8, INT4, FLOAT16 = Form("int8"), Form("int4", "block", block_size=32), Form("float16")
ATTENTION = "up_blocks.0.attentions.1.transformer_blocks.0.attn1"


def form_of(scheme: QuantScheme) -> Form:
    """The form of modules that match none of the scheme's rules."""
    return Form(scheme.weights, scheme.granularity, scheme.block_size, scheme.group_size)


def read(text: str) -> Recipe:
    return recipe_from_toml(text.encode(), Path("written.toml"))


@pytest.mark.parametrize("name", builtin_recipes())
def test_every_recipe_is_read_as_it_was_written(name: str) -> None:
    recipe = load_recipe(recipe_file(Path(name)))
    assert read(recipe_toml(recipe)) == recipe


def test_size_and_loras_are_written(tmp_path: Path) -> None:
    recipe = dataclasses.replace(BASE, size=256, loras=(f"{tmp_path / 'style.safetensors'}:0.5",))
    assert read(recipe_toml(recipe)) == recipe


def test_a_choice_as_people_write_it() -> None:
    forms = {f"{ATTENTION}.to_q": INT4, f"{ATTENTION}.to_k": INT4, "conv_norm": INT4, "mid.conv": FLOAT16, "up.0": INT8}
    recipe = chosen_recipe(BASE.narrowed(("unet",)), {"unet": forms}, "small")
    text = recipe_toml(recipe, ["Chosen by md-export search\nfor 4.5 bits"])
    assert text.startswith('# Chosen by md-export search for 4.5 bits\nname = "small"\ntarget = "coreml"\n')
    scheme = text[text.index("[scheme.unet]") : text.index("[tolerance]")]
    assert scheme == (
        '[scheme.unet]\nweights = "int4"\nactivations = "float16"\ngranularity = "block"\n'
        'keep_float = ["conv_in", "conv_out"]\nblock_size = 32\n\n'
        '[[scheme.unet.rules]]\nmodules = ["mid.conv"]\nweights = "float16"\n\n'
        '[[scheme.unet.rules]]\nmodules = ["up.0"]\nweights = "int8"\n\n'
    )
    loaded = read(text)
    assert (loaded.name, loaded.components, loaded.picture_psnr_db) == ("small", ("unet",), BASE.picture_psnr_db)
    assert loaded.schemes == {"unet": recipe.schemes["unet"]}
    assert loaded.tolerances == {"unet": BASE.tolerances["unet"]}


def test_what_was_not_chosen_stays() -> None:
    recipe = chosen_recipe(BASE, {"unet": {"mid.conv": INT8}, "text_encoder": {}}, "mine")
    kept = dataclasses.replace(BASE, name="mine", schemes={**BASE.schemes, "unet": recipe.schemes["unet"]})
    assert recipe == kept
    assert recipe.schemes["unet"] == dataclasses.replace(
        BASE.schemes["unet"], weights="int8", granularity="channel", group_size=None
    )


def test_a_module_that_stays_in_float_cannot_be_chosen_for() -> None:
    with pytest.raises(RecipeError, match="keep_float: conv_in stays in float"):
        chosen_scheme(BASE.schemes["unet"], {"conv_in": INT8})


def test_as_many_of_both_is_always_told_the_same_way() -> None:
    forms = {"a": INT8, "b": INT4}
    assert chosen_scheme(BASE.schemes["unet"], forms).weights == "int4"
    assert chosen_scheme(BASE.schemes["unet"], dict(reversed(forms.items()))).weights == "int4"


# Surrogates are in no file of UTF-8, control characters in no recipe.
_paths = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cf"]), min_size=1, max_size=12
) | st.sampled_from(["a[0]", "a*", "a?", "[", "]", "[!a]", 'quo"te', "back\\slash", "'''", "a.b", "a", "aa"])


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(_paths, st.sampled_from(FORMS), min_size=1, max_size=12))
def test_every_module_gets_its_form(forms: dict[str, Form]) -> None:
    free = dataclasses.replace(BASE.schemes["unet"], keep_float=())
    base = dataclasses.replace(BASE, schemes={**BASE.schemes, "unet": free})
    found = read(recipe_toml(chosen_recipe(base, {"unet": forms}, "x"))).schemes["unet"]
    assert {path: form_of(found.for_module(path)) for path in forms} == forms
