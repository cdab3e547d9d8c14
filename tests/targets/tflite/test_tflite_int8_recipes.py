"""The recipes of integer weights keep what they promise of the nano checkpoint, quantized from one float export."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from md_export.spec.names import COMPONENT_NAMES
from md_export.spec.recipe import Recipe
from md_export.spec.recipe_file import load_recipe
from md_export.spec.shipped_files import builtin_recipe
from md_export.targets import TARGETS
from tflite_models import Quantized

target = TARGETS["tflite"].open()
RECIPES = ("int8-weights", "int8-static", "int4")


@pytest.mark.slow
@pytest.mark.parametrize("component", COMPONENT_NAMES)
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_meets_its_thresholds_on_the_nano_checkpoint(
    name: str, component: str, quantized: Callable[[str, Recipe], Quantized]
) -> None:
    recipe = load_recipe(builtin_recipe("tflite", name))
    # Exported from the same graph as the float recipe, whose file serves: equalize finds nothing to change there.
    assert recipe.rewrites == ("equalize", *load_recipe(builtin_recipe("tflite", "fp32")).rewrites)
    made = quantized(component, recipe)
    assert made.snr_db >= recipe.tolerances[component].snr_db
    found = target.describe(made.path)
    assert found.stored.get("int8", 0) + found.stored.get("int4", 0) > found.stored["float32"]
    assert found.stored.get("int4", 0) > found.stored.get("int8", 0) or name != "int4"
    assert found.int8_inputs == (1.0 if name == "int8-static" else 0.0)
