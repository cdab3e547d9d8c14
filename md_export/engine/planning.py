"""Recipes and a checkpoint → a plan, inside a worker process: it is what reads the checkpoint and knows the rewrites.

Each key is of all that a step's result depends on, and of nothing else: that is what decides what is built again.
"""

from __future__ import annotations

import dataclasses
import platform
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from md_export.checkpoint.derived import adapted
from md_export.engine.costs import artifact_cost, cases_cost, export_cost, space_of
from md_export.engine.dependencies import (
    OF_AN_ARTIFACT,
    Ground,
    alone,
    calls_of,
    changes_of,
    ground_of,
    is_calibrated,
    makers_of_inputs,
)
from md_export.engine.export import check_recipe
from md_export.engine.keys import key_of, maker
from md_export.engine.metadata import steps_notes
from md_export.engine.plan import ExportPlan, Plan, Step, plan_to_dict
from md_export.engine.request import lora_places, lora_request
from md_export.parity.golden.calibration import calibration_pairs, needs_calibration
from md_export.parity.golden.folder import INDEX, read_index
from md_export.parity.golden.prepare import planned_cases, present_golden
from md_export.spec.recipe import Recipe
from md_export.spec.recipe_file import recipe_from_dict, recipe_to_dict
from md_export.system.files import sha256_of
from md_export.targets.versions import tools_of

# Prompt and seed of each case.
_Pairs = list[tuple[str, int]]


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
    steps: dict[str, Step] = {}
    with ExitStack() as folders:
        grounds = _grounds(recipes, checkpoint_dir, golden, folders)
        exports = tuple(
            _export(_complete(recipe, grounds[recipe.loras]), grounds[recipe.loras], steps) for recipe in recipes
        )
    return Plan(tuple(steps.values()), exports)


def _complete(recipe: Recipe, ground: Ground) -> Recipe:
    """For the checkpoint as it is with its LoRAs, with all components that it has."""
    return dataclasses.replace(recipe, loras=()).completed(ground.checkpoint.components)


def _grounds(
    recipes: list[Recipe], checkpoint_dir: Path, golden: Path | None, folders: ExitStack
) -> dict[tuple[str, ...], Ground]:
    """The checkpoint with each set of LoRAs that some recipe names, while ``folders`` is open."""
    places, found = lora_places(recipes), dict[tuple[str, ...], Ground]()
    for loras in dict.fromkeys(recipe.loras for recipe in recipes):
        folder = folders.enter_context(adapted(checkpoint_dir, loras))
        sizes = {recipe.size for recipe in recipes if recipe.loras == loras}
        found[loras] = ground_of(folder, golden, sizes, lora_request(loras, places))
    return found


def _export(recipe: Recipe, ground: Ground, steps: dict[str, Step]) -> ExportPlan:
    golden, judging = _golden(recipe, ground, steps)
    made = _calibration(recipe, ground, golden, judging, steps)
    cases = len(judging)
    parts = tuple(_artifact(recipe, name, ground, golden, made, steps) for name in recipe.components)
    plain = recipe_to_dict(recipe)
    tools = tools_of(recipe.target, ground.checkpoint.config.libraries)
    content = {"step": "export", **ground.common, "tools": tools, "recipe": plain, "parts": parts}
    content["loras"] = [str(lora) for lora in ground.checkpoint.loras]
    weights = sum(ground.weights[name] for name in recipe.components)
    step = Step(
        key=key_of(content | {"golden": golden}),
        kind="export",
        label=f"{recipe.name}: verify",
        needs=(golden, *parts),
        request={"recipe": plain, "golden": golden, "parts": list(parts), "loras": ground.loras},
        alike=_alike("export", weights, cases, calls_of(recipe), *_of_an_export(recipe)),
        cost=export_cost(recipe.target, weights, cases * calls_of(recipe), ground.area(recipe)),
    )
    steps.setdefault(step.key, step)
    space = sum(space_of(recipe.schemes[name], ground.weights[name]) for name in recipe.components)
    return ExportPlan(recipe.name, recipe.target, step.key, space)


def _golden(recipe: Recipe, ground: Ground, steps: dict[str, Step]) -> tuple[str, _Pairs]:
    """Key of the cases that judge, and what they are of."""
    checkpoint = ground.checkpoint.at(recipe.size)
    given = present_golden(checkpoint, ground.given, recipe.sampler, recipe.encodes)
    if given is not None:
        pairs = [(case.prompt, case.seed) for case in read_index(given).cases]
        source: dict[str, Any] = {"index": sha256_of(given / INDEX)}
    else:
        pairs = planned_cases(recipe, checkpoint)
        source = {"pairs": pairs, "size": checkpoint.config.image_size}
    changes = changes_of(recipe)
    key = key_of({"step": "golden", **ground.common, **changes, **source, "encodes": recipe.encodes})
    computed = len(pairs) if given is None or changes["rewrites"] else 0
    step = Step(
        key=key,
        kind="golden",
        label="golden cases" if computed == 0 else f"{computed} golden cases by torch",
        needs=(),
        request={"recipe": recipe_to_dict(dataclasses.replace(recipe, rewrites=tuple(changes["rewrites"])))}
        | {"loras": ground.loras},
        alike=_alike("golden", ground.all_weights, computed, recipe.size, calls_of(recipe)),
        cost=cases_cost(ground.all_weights, computed * calls_of(recipe), ground.area(recipe)),
    )
    steps.setdefault(key, step)
    return key, pairs


def _calibration(
    recipe: Recipe, ground: Ground, golden: str, judging: _Pairs, steps: dict[str, Step]
) -> tuple[str, dict[str, Any]] | None:
    """Key of the cases that calibrate, and what they are of; None where the golden ones serve, or none are needed."""
    plan = recipe.calibration
    if plan is None or not needs_calibration(recipe):
        return None
    pairs = calibration_pairs(recipe.name, plan, judging)
    asked = {**changes_of(recipe), "pairs": pairs, "size": recipe.size, "encodes": recipe.encodes}
    key = key_of({"step": "calibration", **ground.common, **asked})
    count = len(pairs)
    step = Step(
        key=key,
        kind="calibration",
        label=f"{count} calibration cases by torch",
        needs=(golden,),
        request={"recipe": recipe_to_dict(recipe), "golden": golden, "loras": ground.loras},
        alike=_alike("calibration", ground.all_weights, count, recipe.size, calls_of(recipe)),
        cost=cases_cost(ground.all_weights, count * calls_of(recipe), ground.area(recipe)),
    )
    steps.setdefault(key, step)
    return key, asked


def _artifact(
    recipe: Recipe,
    name: str,
    ground: Ground,
    golden: str,
    made: tuple[str, dict[str, Any]] | None,
    steps: dict[str, Step],
) -> str:
    """Key of one artifact. What the component does not depend on has no part in it: thresholds, names, other schemes,
    rewrites that fire elsewhere, weights of other components; what it has of their configs is in the notes."""
    scheme = recipe.schemes[name]
    notes = ground.notes[recipe.size][name] | steps_notes(ground.checkpoint, recipe.sampler)
    cases, asked = made if made and is_calibrated(scheme) else (None, None)
    part = alone(recipe, name)
    plain = recipe_to_dict(part)
    own = {field: plain[field] for field in OF_AN_ARTIFACT}
    tools = tools_of(recipe.target, ground.checkpoint.config.libraries)
    content = {"step": "artifact", "maker": maker(), "tools": tools, "notes": notes, **own}
    if asked is not None:
        files, inpaints = ground.checkpoint.file_hashes(), ground.checkpoint.config.inpaints
        content["calibrated on"] = {**asked, "by": makers_of_inputs(files, name, inpaints)}
    elif is_calibrated(scheme):
        content["calibrated on"] = golden
    if changes_of(part)["rewrites"]:
        content["trained"] = ground.checkpoint.trained_substitutions
    # What onnxruntime fuses for a processor is for the machine that it was fused on.
    host = platform.node() if recipe.form else None
    key = key_of(content | {"host": host})
    step = Step(
        key=key,
        kind="artifact",
        label=f"{recipe.name}: {name}",
        needs=(golden,) if cases is None else (golden, cases),
        request={"recipe": plain, "component": name, "notes": notes, "golden": golden, "cases": cases}
        | {"loras": ground.loras},
        alike=_alike("artifact", recipe.target, name, ground.weights[name], scheme, recipe.size),
        cost=artifact_cost(recipe.target, name, scheme, ground.weights[name], ground.area(recipe)),
    )
    steps.setdefault(key, step)
    return key


def _of_an_export(recipe: Recipe) -> tuple[Any, ...]:
    return recipe.target, recipe.size, *map(recipe.schemes.get, recipe.components)


def _alike(*what: Any) -> str:
    return key_of({"alike": [repr(one) for one in what]})
