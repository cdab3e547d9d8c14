"""What of a recipe a step depends on."""

from __future__ import annotations

import dataclasses
from typing import Any, Final

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
    "calibration",
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
    )


def changes_of(recipe: Recipe) -> dict[str, Any]:
    """The rewrites that change the function, and with them the cases that show it."""
    changing = [name for name in recipe.rewrites if not find_rewrite(name).exact]
    return {"rewrites": changing, "allow_drift": bool(changing) and recipe.allow_drift}


def is_calibrated(scheme: QuantScheme) -> bool:
    """Whether the artifact depends on more inputs than the one that it is traced with."""
    return scheme.activations == "int8_static" or scheme.is_adjusted
