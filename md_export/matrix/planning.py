"""Recipes and a checkpoint → a plan, inside a worker process: it is what reads the checkpoint and knows the rewrites.

Each key is of all that a step's result depends on, and of nothing else: that is what decides what is built again.
"""

from __future__ import annotations

import dataclasses
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from md_export.artifact import GOLDEN_FOLDER
from md_export.checkpoint import Checkpoint, open_checkpoint
from md_export.checkpoint.build import build_on_meta, component_named
from md_export.files import sha256_of
from md_export.matrix.costs import artifact_cost, cases_cost, export_cost
from md_export.matrix.depends import OF_AN_ARTIFACT, alone, changes_of, is_calibrated
from md_export.matrix.keys import key_of, maker
from md_export.matrix.plan import ExportPlan, Plan, Step, plan_to_dict
from md_export.notes import notes_of
from md_export.parity.calibration import needs_calibration
from md_export.parity.golden import INDEX, read_index
from md_export.parity.prepare import planned_cases
from md_export.pipeline import check_recipe
from md_export.recipe import Recipe, recipe_from_dict, recipe_to_dict
from md_export.versions import tools_of

_FLOAT32_BYTES: Final = 4
# Of float32 weights, by the type that they are stored in, generously.
_SPACE: Final = {"float32": 1.1, "float16": 0.7}
_SPACE_OF_OTHERS: Final = 0.4


@dataclass(frozen=True)
class _Ground:
    """What all recipes share.

    Attributes:
        common: of every key: the checkpoint, and who computes.
        given: folder of golden cases; None where they are to be made.
        weights: bytes of each component in float32.
    """

    checkpoint: Checkpoint
    common: dict[str, Any]
    notes: dict[str, str]
    given: Path | None
    weights: dict[str, int]

    @property
    def all_weights(self) -> int:
        return sum(self.weights.values())


def plan_in_worker(request: dict[str, Any]) -> dict[str, Any]:
    """The worker's side of :func:`plan`: plain data in and out."""
    recipes = [recipe_from_dict(values, "recipe") for values in request["recipes"]]
    given = request["given"] and Path(request["given"])
    return plan_to_dict(plan(recipes, Path(request["checkpoint"]), given))


def plan(recipes: list[Recipe], checkpoint_dir: Path, golden: Path | None) -> Plan:
    """All steps for the recipes, shared where they are the same.

    Raises:
        MdExportError: a recipe cannot be carried out here, or the checkpoint or the golden cases cannot be read.
    """
    for recipe in recipes:
        check_recipe(recipe)
    ground = _ground(checkpoint_dir, golden)
    steps: dict[str, Step] = {}
    exports = tuple(_export(recipe, ground, steps) for recipe in recipes)
    return Plan(tuple(steps.values()), exports)


def _ground(checkpoint_dir: Path, golden: Path | None) -> _Ground:
    checkpoint = open_checkpoint(checkpoint_dir)
    checkpoint.check()
    own = checkpoint.root / GOLDEN_FOLDER
    names = ("text_encoder", "unet", "vae_decoder")
    return _Ground(
        checkpoint,
        {
            "checkpoint": checkpoint.sha256(),
            "trained": checkpoint.trained_substitutions,
            "maker": maker(),
            "tools": tools_of(),
        },
        notes_of(checkpoint),
        golden or (own if own.is_dir() else None),
        {name: _weight_bytes(checkpoint, name) for name in names},
    )


def _weight_bytes(checkpoint: Checkpoint, name: str) -> int:
    module = build_on_meta(component_named(name), checkpoint.config)
    return _FLOAT32_BYTES * sum(int(tensor.numel()) for tensor in module.state_dict().values())


def _export(recipe: Recipe, ground: _Ground, steps: dict[str, Step]) -> ExportPlan:
    golden, cases = _golden(recipe, ground, steps)
    made = _calibration(recipe, ground, golden, steps)
    parts = tuple(_artifact(recipe, name, ground, golden, made, steps) for name in recipe.components)
    plain = recipe_to_dict(recipe)
    content = {"step": "export", **ground.common, "tools": tools_of(recipe.target), "recipe": plain, "parts": parts}
    weights = sum(ground.weights[name] for name in recipe.components)
    step = Step(
        key=key_of(content | {"golden": golden}),
        kind="export",
        label=f"{recipe.name}: verify",
        needs=(golden, *parts),
        request={"recipe": plain, "golden": golden, "parts": list(parts)},
        alike=_alike("export", recipe.target, weights, cases, *(recipe.schemes[one] for one in recipe.components)),
        cost=export_cost(recipe.target, weights, cases),
    )
    steps.setdefault(step.key, step)
    space = sum(ground.weights[name] * _space(recipe.schemes[name].weights) for name in recipe.components)
    return ExportPlan(recipe.name, recipe.target, step.key, round(space))


def _golden(recipe: Recipe, ground: _Ground, steps: dict[str, Step]) -> tuple[str, int]:
    """Key and number of the cases that judge."""
    if ground.given is not None:
        index = read_index(ground.given)
        source: dict[str, Any] = {"index": sha256_of(ground.given / INDEX)}
        count = len(index.cases)
    else:
        pairs = planned_cases(recipe, ground.checkpoint)
        source, count = {"pairs": pairs}, len(pairs)
    changes = changes_of(recipe)
    key = key_of({"step": "golden", **ground.common, **changes, **source})
    computed = count if ground.given is None or changes["rewrites"] else 0
    step = Step(
        key=key,
        kind="golden",
        label="golden cases" if computed == 0 else f"{computed} golden cases by torch",
        needs=(),
        request={"recipe": recipe_to_dict(dataclasses.replace(recipe, rewrites=tuple(changes["rewrites"])))},
        alike=_alike("golden", ground.all_weights, computed),
        cost=cases_cost(ground.all_weights, computed),
    )
    steps.setdefault(key, step)
    return key, count


def _calibration(recipe: Recipe, ground: _Ground, golden: str, steps: dict[str, Step]) -> str | None:
    """Key of the cases that calibrate; None where the golden ones serve, or nothing is calibrated."""
    plan = recipe.calibration
    if plan is None or not needs_calibration(recipe):
        return None
    changes = changes_of(recipe)
    asked = {"prompts": plan.prompts, "seeds": plan.seeds}
    key = key_of({"step": "calibration", **ground.common, "golden": golden, **changes, **asked})
    count = len(plan.seeds) * len(plan.prompts or recipe.golden.prompts)
    step = Step(
        key=key,
        kind="calibration",
        label=f"about {count} calibration cases by torch",
        needs=(golden,),
        request={"recipe": recipe_to_dict(recipe), "golden": golden},
        alike=_alike("calibration", ground.all_weights, count),
        cost=cases_cost(ground.all_weights, count),
    )
    steps.setdefault(key, step)
    return key


def _artifact(recipe: Recipe, name: str, ground: _Ground, golden: str, made: str | None, steps: dict[str, Step]) -> str:
    """Key of one artifact. What the component does not depend on has no part in it: thresholds, names, other schemes,
    rewrites that fire elsewhere."""
    scheme = recipe.schemes[name]
    cases = made if is_calibrated(scheme) else None
    plain = recipe_to_dict(alone(recipe, name))
    own = {field: plain[field] for field in OF_AN_ARTIFACT}
    content = {"step": "artifact", **ground.common, "tools": tools_of(recipe.target), "notes": ground.notes, **own}
    # What onnxruntime fuses for a processor is for the machine that it was fused on.
    host = platform.node() if recipe.form else None
    key = key_of(content | {"golden": golden, "cases": cases, "host": host})
    step = Step(
        key=key,
        kind="artifact",
        label=f"{recipe.name}: {name}",
        needs=(golden,) if cases is None else (golden, cases),
        request={"recipe": plain, "component": name, "notes": ground.notes, "golden": golden, "cases": cases},
        alike=_alike("artifact", recipe.target, name, ground.weights[name], scheme),
        cost=artifact_cost(recipe.target, name, scheme, ground.weights[name]),
    )
    steps.setdefault(key, step)
    return key


def _space(weights: str) -> float:
    return _SPACE.get(weights, _SPACE_OF_OTHERS)


def _alike(*what: Any) -> str:
    return key_of({"alike": [repr(one) for one in what]})
