"""Start of a search: the recipe whose rewrites and activations are kept, and the forms that modules can have."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from md_export.engine.request import Resources
from md_export.engine.search.budget import Budget
from md_export.engine.search.choice import Form
from md_export.errors import UsageError
from md_export.spec.names import COMPONENT_NAMES
from md_export.spec.recipe import Recipe
from md_export.spec.recipe_file import load_recipe
from md_export.spec.shipped_files import builtin_recipe


@dataclass(frozen=True)
class SearchRequest:
    """Options of a search.

    Attributes:
        recipe: recipe file to start from; its rewrites, activations and thresholds are kept. None: the target's
            built-in recipe.
        judge: command that prints a score for an export, for a budget with a score.
        rounding: rounding to use instead of the recipe's.
        components: components to choose forms for, all if empty; the others keep the recipe's schemes.
        golden: folder of golden cases for measurement and verification; None: the checkpoint's.
        prompts: prompts to make golden cases from, instead of ``golden``.
        jobs: number of concurrent processes on this machine; None: one per core.
        dask: address of a scheduler whose workers run the measurements instead.
        out: folder to write; must not exist.
        journal: file of measurements, new or from an earlier search; None: a file beside ``out``.
        resources: resources that builds may use; None: the defaults.
    """

    checkpoint: Path
    target: str
    budget: Budget
    out: Path
    recipe: Path | None = None
    judge: str | None = None
    rounding: Literal["nearest", "mse", "gptq"] | None = None
    components: tuple[str, ...] = ()
    golden: Path | None = None
    prompts: tuple[str, ...] = ()
    jobs: int | None = None
    dask: str | None = None
    journal: Path | None = None
    resources: Resources | None = None


@dataclass(frozen=True)
class Start:
    """Start of a search for one target.

    Attributes:
        precision: precision of the built-in recipe.
        forms: forms that a module can have, in order of increasing bits; the last one is float.
    """

    precision: str
    forms: tuple[Form, ...]


STARTS: Final[Mapping[str, Start]] = {
    "coreml": Start(
        "palette4",
        (
            *(Form(weights, "group", group_size=16) for weights in ("palette2", "palette3", "palette4")),
            *(Form(weights, "tensor") for weights in ("palette6", "palette8")),
            Form("float16"),
        ),
    ),
    "tflite": Start("int4", (Form("int4"), Form("int8"), Form("float32"))),
    "coreai": Start(
        "palette4",
        (
            *(Form(weights, "group", group_size=16) for weights in ("palette2", "palette4")),
            *(Form(weights, "tensor") for weights in ("palette6", "palette8")),
            Form("float32"),
        ),
    ),
    "onnx": Start("int4", (Form("int4", "block", block_size=32), Form("int4"), Form("int8"), Form("float32"))),
}


def starting_recipe(request: SearchRequest) -> Recipe:
    """Return the request's recipe, or the target's built-in one, with the rounding to use in the search.

    The built-in recipe uses GPTQ rounding, which needs calibration, unless the request selects another.

    Raises:
        UsageError: the recipe is for another target, has several sampling steps or LoRAs, lacks one of the request's
            components, or lacks a component for the picture that the budget limits.
    """
    recipe = load_recipe(request.recipe or builtin_recipe(request.target, STARTS[request.target].precision))
    if recipe.target != request.target:
        raise UsageError(f"the recipe {recipe.name} is for {recipe.target}; search with --target {recipe.target}")
    if recipe.sampler is not None:
        raise UsageError(
            f"the recipe {recipe.name} takes {recipe.sampler.steps} steps, and a search measures one call of the UNet; "
            "search with a recipe without [sampler], then export with the rules that were found and --steps"
        )
    if recipe.loras:
        raise UsageError(
            f"the recipe {recipe.name} has LoRAs, and a search takes them as part of the checkpoint: write one with "
            "md-export adapt, search on that folder, and leave out loras"
        )
    rounding = request.rounding or ("gptq" if request.recipe is None else None)
    schemes = {
        name: dataclasses.replace(
            scheme,
            rounding=rounding or scheme.rounding,
            bias_correction=scheme.bias_correction if request.recipe else rounding != "nearest",
        )
        for name, scheme in recipe.schemes.items()
    }
    missing = [name for name in request.components if name not in recipe.components]
    if missing:
        raise UsageError(f"the recipe {recipe.name} has no {missing[0]}; it has {', '.join(recipe.components)}")
    if request.budget.picture_db is not None and not set(COMPONENT_NAMES) <= set(recipe.components):
        raise UsageError(
            f"the recipe {recipe.name} makes no picture: it lacks a component; give --budget snr=… instead"
        )
    return dataclasses.replace(recipe, schemes=schemes)
