"""The int8 recipes of the nano checkpoint keep what they promise, quantized from one float export."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from md_export.checkpoint import open_checkpoint
from md_export.data import builtin_recipe
from md_export.parity.golden import read_golden
from md_export.parity.metrics import compare, worst
from md_export.parity.rewritten import rewritten
from md_export.recipe import COMPONENT_NAMES, Recipe, load_recipe
from md_export.targets import TARGETS
from md_export.targets.contract import LoweringJob
from md_export.targets.tflite.lower import TfliteModel
from support import Exported

target = TARGETS["tflite"].open()
RECIPES = ("int8-weights", "int8-static")


@dataclass(frozen=True)
class Quantized:
    """A component's file and worst SNR over the golden cases."""

    path: Path
    snr_db: float


@pytest.fixture(scope="session")
def quantized(
    exported: Exported, nano: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, Recipe], Quantized]:
    """A component quantized as a recipe says, from the float file that all recipes share."""
    root, checkpoint = tmp_path_factory.mktemp("int8"), open_checkpoint(nano)

    def get(name: str, recipe: Recipe) -> Quantized:
        float_file = exported("tflite", "fp32") / f"{name}.tflite"
        part, cases = rewritten(checkpoint, name, recipe), read_golden(nano / "golden").cases
        batches = [part.inputs_of(case) for case in cases]
        scheme = recipe.schemes[name]
        job = LoweringJob(name, part.module, part.inputs, part.outputs, batches[0], scheme, tuple(batches[::2]), root)
        path = root / f"{recipe.name}_{name}.tflite"
        target.save(target.quantize(TfliteModel(float_file), job), path)
        (made,), runner = part.outputs, target.load(path)
        figures = [
            compare(runner.run(batch)[made.name], case.output(made.name))
            for batch, case in zip(batches, cases, strict=True)
        ]
        return Quantized(path, worst(figures).snr_db)

    return get


@pytest.mark.slow
@pytest.mark.parametrize("component", COMPONENT_NAMES)
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_meets_its_thresholds_on_the_nano_checkpoint(
    name: str, component: str, quantized: Callable[[str, Recipe], Quantized]
) -> None:
    recipe = load_recipe(builtin_recipe("tflite", name))
    # Both are exported from the same graph as the float recipe: its file serves.
    assert recipe.rewrites == load_recipe(builtin_recipe("tflite", "fp32")).rewrites
    made = quantized(component, recipe)
    assert made.snr_db >= recipe.tolerances[component].snr_db
    found = target.describe(made.path)
    assert found.stored["int8"] > found.stored["float32"]
    assert found.int8_inputs == (1.0 if name == "int8-static" else 0.0)
