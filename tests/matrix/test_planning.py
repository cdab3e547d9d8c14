"""What is built again when something changes: keys of all steps, for recipes that differ in one field."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from forks import FORKS
from md_export.calibration import CalibrationPlan
from md_export.data import builtin_recipe
from md_export.errors import RewriteError
from md_export.matrix.opening import READ
from md_export.matrix.plan import ExportPlan, Plan, plan_from_json, plan_to_dict
from md_export.matrix.planning import plan
from md_export.recipe import GoldenPlan, Recipe, Tolerance, load_recipe

ARTIFACTS = {"text_encoder", "unet", "vae_decoder"}
ALL = {"golden", "calibration", "export", *ARTIFACTS}
FLOAT = load_recipe(builtin_recipe("onnx", "fp16"))
INT8 = load_recipe(builtin_recipe("onnx", "int8"))
PLAN = INT8.calibration


def unet_scheme(recipe: Recipe, **changes: object) -> Recipe:
    return replace(recipe, schemes={**recipe.schemes, "unet": replace(recipe.schemes["unet"], **changes)})  # type: ignore[arg-type]


def calibrated(**changes: object) -> Recipe:
    assert PLAN is not None
    return replace(INT8, calibration=replace(PLAN, **changes))  # type: ignore[arg-type]


# Base, changed, and the steps that have another key.
CHANGES: dict[str, tuple[Recipe, Recipe, set[str]]] = {
    "name": (FLOAT, replace(FLOAT, name="other"), {"export"}),
    "tolerance": (FLOAT, replace(FLOAT, tolerances=FLOAT.tolerances | {"unet": Tolerance(1.0)}), {"export"}),
    "picture": (FLOAT, replace(FLOAT, picture_psnr_db=1.0), {"export"}),
    "regression": (FLOAT, replace(FLOAT, regression=None), {"export"}),
    "prompts": (FLOAT, replace(FLOAT, golden=GoldenPlan(("a",))), {"export"}),
    "drift": (FLOAT, replace(FLOAT, allow_drift=True), {"export"}),
    "scheme": (FLOAT, unet_scheme(FLOAT, keep_float=("conv_in",)), {"unet", "export"}),
    "rewrite": (FLOAT, replace(FLOAT, rewrites=("linear_to_conv2d",)), {"export", *ARTIFACTS}),
    "unet rewrite": (FLOAT, replace(FLOAT, rewrites=("fold_timestep",)), {"unet", "export"}),
    "form": (INT8, replace(INT8, form="ort"), {"export", *ARTIFACTS}),
    "observer": (INT8, calibrated(observer="min_max"), {"export", *ARTIFACTS}),
    "seeds": (INT8, calibrated(seeds=(77,)), {"calibration", "export", *ARTIFACTS}),
    "idle calibration": (FLOAT, replace(FLOAT, calibration=CalibrationPlan((1,))), {"export"}),
    "float unet": (INT8, unet_scheme(INT8, weights="float32", activations="float32"), {"unet", "export"}),
}


@pytest.fixture(scope="module")
def plans(nano: Path) -> Callable[[Recipe], dict[str, str]]:
    """Keys of a recipe's steps, by kind and component. All recipes are planned at once, as in one build."""
    recipes = list({repr(one): one for base, other, _ in CHANGES.values() for one in (base, other)}.values())
    found = plan(recipes, nano, None)
    by_recipe = {repr(recipe): keys(found, export) for recipe, export in zip(recipes, found.exports, strict=True)}
    return lambda recipe: by_recipe[repr(recipe)]


def keys(found: Plan, export: ExportPlan) -> dict[str, str]:
    last = found.step(export.key)
    below = [found.step(key) for key in last.needs]
    named = {step.request.get("component", step.kind): step.key for step in below}
    further = {found.step(key).kind: key for step in below for key in step.needs}
    return {"export": last.key, **named, **further}


@pytest.mark.parametrize("change", CHANGES)
def test_one_field_rebuilds_what_depends_on_it(plans: Callable[[Recipe], dict[str, str]], change: str) -> None:
    base, other, expected = CHANGES[change]
    before, after = plans(base), plans(other)
    assert {name for name in before if before[name] != after[name]} == expected


def test_paths_and_copies_do_not_matter(nano: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(nano, tmp_path / "other" / "place", ignore=shutil.ignore_patterns("siblings", "training"))
    here, there = plan([FLOAT], nano, None), plan([FLOAT], copy, None)
    assert plan_to_dict(here) == plan_to_dict(there)
    assert str(nano) not in json.dumps(plan_to_dict(here))
    assert plan_from_json(json.dumps(plan_to_dict(here))) == here
    path = copy / "unet" / "config.json"
    path.write_text(path.read_text() + "\n")
    (copy / "golden").rename(copy / "put-aside")
    changed = plan([FLOAT], copy, None)
    assert {step.key for step in changed.steps}.isdisjoint(step.key for step in here.steps)


def test_steps_come_after_what_they_need(nano: Path) -> None:
    found, seen = plan([INT8, FLOAT], nano, None), set[str]()
    for step in found.steps:
        assert seen.issuperset(step.needs)
        seen.add(step.key)
    assert len(found.steps) == 1 + 1 + 2 * 4, "golden cases are shared"
    assert all(step.cost.peak_bytes > 1e8 and step.cost.seconds > 0 for step in found.steps)


def test_a_recipe_that_cannot_be_carried_out_is_refused_at_once(nano: Path) -> None:
    with pytest.raises(RewriteError, match="unknown rewrite"):
        plan([replace(FLOAT, rewrites=("nothing",))], nano, None)


def test_everything_that_is_read_of_a_checkpoint_is_remembered(nano: Path) -> None:
    """A plan is remembered by the files in READ: none that is opened may be missing there."""
    code = f"""
import json, os, sys
from pathlib import Path
root, opened = {str(nano)!r}, set()
sys.addaudithook(lambda name, given: opened.add(str(given[0])) if name == "open" else None)
from md_export.matrix.planning import plan
from md_export.recipe import load_recipe
from md_export.checkpoint import open_checkpoint
plan([load_recipe(Path({str(builtin_recipe("onnx", "int8"))!r}))], Path(root), None)
open_checkpoint(Path(root)).module("vae_decoder")
print(json.dumps(sorted(os.path.relpath(path, root) for path in opened if path.startswith(root + "/"))))
"""
    run = FORKS.run([sys.executable, "-c", code], capture_output=True, text=True)
    opened = json.loads(run.stdout.splitlines()[-1])
    assert {"unet/config.json", "golden/index.json"} <= set(opened)
    assert {name.split("/")[0] for name in opened} <= set(READ)
