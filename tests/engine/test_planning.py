"""What is built again when something changes: keys of all steps, for recipes that differ in one field."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import commands
from md_export.checkpoint.files import hash_of_file
from md_export.engine import dependencies
from md_export.engine.inputs import READ
from md_export.engine.plan import PLAN as CODE
from md_export.engine.plan import ArtifactRequest, ExportPlan, Plan
from md_export.engine.planning import plan
from md_export.errors import RewriteError
from md_export.spec.calibration import CalibrationPlan
from md_export.spec.recipe import GoldenPlan, Recipe, Tolerance
from md_export.spec.recipe_file import load_recipe
from md_export.spec.shipped_files import builtin_recipe

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
    named = {
        step.request.component if isinstance(step.request, ArtifactRequest) else step.kind: step.key for step in below
    }
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
    assert CODE.dump_json(here) == CODE.dump_json(there)
    assert str(nano).encode() not in CODE.dump_json(here)
    assert CODE.dump_json(CODE.validate_json(CODE.dump_json(here), strict=True)) == CODE.dump_json(here)
    path = copy / "unet" / "config.json"
    path.write_text(path.read_text() + "\n")
    (copy / "golden").rename(copy / "put-aside")
    changed = plan([FLOAT], copy, None)
    assert differing(here, changed) == {"golden", "unet", "export"}


# Folder that is another one, and the steps that have another key: of weights alone, and calibrated.
FOLDERS = {
    "vae": ({"vae_decoder"}, {"vae_decoder"}),
    "unet": ({"unet"}, {"unet", "vae_decoder"}),
    "text_encoder": ({"text_encoder"}, ARTIFACTS),
    "scheduler": (ARTIFACTS, ARTIFACTS),
    "tokenizer": (set[str](), ARTIFACTS),
}


@pytest.mark.parametrize("folder", FOLDERS)
def test_checkpoints_share_the_components_that_are_the_same(nano: Path, tmp_path: Path, folder: str) -> None:
    """Calibrated ones depend on what computes their inputs, too; cases that judge and verification on everything."""
    ignored = shutil.ignore_patterns("siblings", "training", "golden")
    one, other = (Path(shutil.copytree(nano, tmp_path / name, ignore=ignored)) for name in ("one", "other"))
    change(other / folder)
    for recipe, expected in zip((FLOAT, INT8), FOLDERS[folder], strict=True):
        before, after = plan([recipe], one, None), plan([recipe], other, None)
        further = {"calibration"} if recipe is INT8 else set[str]()
        assert differing(before, after) == {"golden", "export", *further, *expected}


def change(folder: Path) -> None:
    """Make it another one, that can be read."""
    for weights in folder.glob("*.safetensors"):
        with weights.open("r+b") as stream:
            stream.seek(-4, os.SEEK_END)
            byte = stream.read(1)
            stream.seek(-4, os.SEEK_END)
            stream.write(bytes([byte[0] ^ 1]))
        return
    if folder.name == "scheduler":
        path = folder / "scheduler_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"beta_end": 0.0121}))
    else:
        path = folder / "tokenizer_config.json"
        path.write_text(path.read_text() + "\n")


def differing(before: Plan, after: Plan) -> set[str]:
    """Kinds and components of the steps whose keys differ."""
    one, other = keys(before, before.exports[0]), keys(after, after.exports[0])
    assert set(one) == set(other)
    return {name for name in one if one[name] != other[name]}


def test_a_sibling_shares_what_it_inherits(nano: Path) -> None:
    sibling = nano / "siblings" / "gelu"
    assert differing(plan([FLOAT], nano, None), plan([FLOAT], sibling, None)) == {"golden", "unet", "export"}


def test_a_lora_leaves_what_it_does_not_touch(nano: Path, tmp_path: Path) -> None:
    """The recipes of one plan with and without it; another file name changes the manifest alone, no path anything."""
    halves = {
        "unet.conv_in.lora_A.weight": torch.ones(1, 8, 3, 3),
        "unet.conv_in.lora_B.weight": torch.ones(48, 1, 1, 1),
    }
    files = [tmp_path / name for name in ("a.safetensors", "b/a.safetensors", "c.safetensors")]
    (tmp_path / "b").mkdir()
    for file in files:
        save_file(halves, file)
    for recipe, touched in ((FLOAT, {"unet"}), (INT8, {"unet", "vae_decoder", "calibration"})):
        each = [replace(recipe, loras=(str(file),)) for file in files]
        found = plan([recipe, *each], nano, None)
        assert str(tmp_path).encode() not in CODE.dump_json(found)
        # Shared artifacts were made beside the cases of the first recipe that asked for them.
        judged = [found.step(found.step(export.key).needs[0]) for export in found.exports]
        bare, one, moved, renamed = (
            keys(found, export) | {"golden": step.key} for export, step in zip(found.exports, judged, strict=True)
        )
        assert {name for name in bare if bare[name] != one[name]} == {"golden", "export", *touched}
        assert one == moved
        assert {name for name in one if one[name] != renamed[name]} == {"export"}
        assert [step.request.loras for step in judged[:2]] == [(), (("lora 0", ""),)]
        assert judged[1].request.recipe.loras == ()


def test_files_that_loras_share_are_read_once(nano: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []

    def counted(file: Path) -> str:
        read.append(file)
        return hash_of_file(file)

    monkeypatch.setattr(dependencies, "hash_of_file", counted)
    recipes = [FLOAT]
    for number in range(2):
        file = tmp_path / f"{number}.safetensors"
        halves = {
            "unet.conv_in.lora_A.weight": torch.ones(1, 8, 3, 3),
            "unet.conv_in.lora_B.weight": torch.ones(48, 1, 1, 1),
        }
        save_file(halves, file)
        recipes.append(replace(FLOAT, loras=(str(file),)))
    found = plan(recipes, nano, None)
    assert len(read) == len(set(read)) > 5
    monkeypatch.undo()
    assert found.exports[2] == plan(recipes[2:], nano, None).exports[0], "the same keys as alone"


def test_steps_come_after_what_they_need(nano: Path) -> None:
    found, seen = plan([INT8, FLOAT], nano, None), set[str]()
    for step in found.steps:
        assert seen.issuperset(step.needs)
        seen.add(step.key)
    assert len(found.steps) == 1 + 1 + 2 * 4, "golden cases are shared"
    assert all(step.cost.peak_bytes > 1e8 and step.cost.seconds > 0 for step in found.steps)


def test_calibration_cases_are_made_once_for_all_components_and_are_not_shipped(nano: Path) -> None:
    found = plan([INT8], nano, None)
    (made,) = [step for step in found.steps if step.kind == "calibration"]
    artifacts = [step.request for step in found.steps if isinstance(step.request, ArtifactRequest)]
    assert [request.cases for request in artifacts] == [made.key] * 3
    assert made.key not in found.step(found.exports[0].key).needs


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
from md_export.engine.planning import plan
from md_export.spec.recipe_file import load_recipe
from md_export.checkpoint import open_checkpoint
plan([load_recipe(Path({str(builtin_recipe("onnx", "int8"))!r}))], Path(root), None)
open_checkpoint(Path(root)).module("vae_decoder")
print(json.dumps(sorted(os.path.relpath(path, root) for path in opened if path.startswith(root + "/"))))
"""
    run = commands.run([sys.executable, "-c", code], capture_output=True, text=True)
    opened = json.loads(run.stdout.splitlines()[-1])
    assert {"unet/config.json", "golden/index.json"} <= set(opened)
    assert {name.split("/")[0] for name in opened} <= set(READ)
