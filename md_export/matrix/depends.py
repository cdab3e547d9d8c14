"""What of a recipe, and of a checkpoint, a step depends on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Final

from md_export.checkpoint.origin import INHERITED, hash_of_folder
from md_export.components import ALL_COMPONENTS, COMPONENTS
from md_export.names import ADAPTER, CONTROLNET
from md_export.parity.chain import CHAIN
from md_export.recipe import Recipe
from md_export.rewrites import find_rewrite
from md_export.scheme import QuantScheme

# Fields that may change an artifact, once the recipe is that of one component.
OF_AN_ARTIFACT: Final = (
    "target",
    "components",
    "schemes",
    "rewrites",
    "allow_drift",
    "deployment_target",
    "layout",
    "form",
    "npu",
    "calibration",
    "size",
    "sampler",
)


def alone(recipe: Recipe, name: str) -> Recipe:
    """The recipe of one component without what others alone need."""
    rewrites = tuple(one for one in recipe.rewrites if name in find_rewrite(one).components)
    changing = any(not find_rewrite(one).exact for one in rewrites)
    return dataclasses.replace(
        recipe.narrowed((name,)),
        schemes={name: recipe.schemes[name]},
        tolerances={name: recipe.tolerances[name]},
        rewrites=rewrites,
        allow_drift=recipe.allow_drift and changing,
        calibration=recipe.calibration if is_calibrated(recipe.schemes[name]) else None,
        npu=recipe.npu if recipe.schemes[name].is_static else (),
    )


def changes_of(recipe: Recipe) -> dict[str, Any]:
    """The rewrites that change the function, and with them the cases that show it."""
    changing = [name for name in recipe.rewrites if not find_rewrite(name).exact]
    sampler = recipe.sampler and dataclasses.asdict(recipe.sampler)
    return {"rewrites": changing, "allow_drift": bool(changing) and recipe.allow_drift, "sampler": sampler}


def calls_of(recipe: Recipe) -> int:
    """Of the UNet for a picture, each of one prompt: what golden cases and their verification cost."""
    return 1 if recipe.sampler is None else 2 * recipe.sampler.steps


def is_calibrated(scheme: QuantScheme) -> bool:
    """Whether the artifact depends on more inputs than the one that it is traced with."""
    return scheme.is_static or scheme.is_adjusted


def makers_of_inputs(files: Mapping[str, str], name: str, inpaints: bool = False) -> list[str]:
    """Hashes of what computes a component's inputs: the tokenizer, and the components before it.

    ``files``: SHA-256 of the checkpoint's files by their names; ``inpaints``: the UNet takes a picture's latents.
    """
    before = [COMPONENTS[one].folder for one in CHAIN[: CHAIN.index(name)]] if name in CHAIN else []
    if any(file.removeprefix(INHERITED).startswith((f"{ADAPTER}/", f"{CONTROLNET}/")) for file in files):
        # Its condition is of a picture, which all of them make.
        before = [component.folder for component in ALL_COMPONENTS.values()]
    elif name == "vae_encoder" or (inpaints and name != "text_encoder"):
        before = [component.folder for component in COMPONENTS.values()]
    return [hash_of_folder(files, folder) for folder in ("tokenizer", *before)]
