"""Build recipes and their expansion to export recipes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from md_export.errors import RecipeError
from md_export.spec.loras import anchored
from md_export.spec.names import ComponentName
from md_export.spec.recipe import Recipe
from md_export.spec.recipe_file import load_recipe, read_toml
from md_export.spec.shipped_files import builtin_recipe, builtin_recipes, recipe_file
from md_export.spec.variant import Size, Variant
from md_export.system.files import is_plain_name
from md_export.system.terminal_text import first_control

_FORBID: Final = ConfigDict(extra="forbid", strict=True)
_MOST_RECIPES: Final = 1000
# Keys that identify a build recipe: each has at least one of them, and an export recipe has none.
_MARKS: Final = ("matrix", "recipes")


@dataclass(frozen=True)
class Matrix:
    """Every target in every precision: the built-in recipes ``<target>-<precision>``.

    Attributes:
        targets, precisions: parts of the recipes' names.
        sizes: picture sizes; each recipe is built in every one.
        loras: sets of LoRAs; each recipe is built with every set. Files are relative to the build recipe's file. An
            empty set stands for the checkpoint without LoRAs.
    """

    __pydantic_config__ = _FORBID

    targets: tuple[Literal["coreml", "tflite", "onnx", "coreai"], ...]
    precisions: tuple[str, ...]
    sizes: tuple[Size, ...] = ()
    loras: tuple[tuple[str, ...], ...] = ()

    @property
    def count(self) -> int:
        """Number of recipes."""
        return len(self.targets) * len(self.precisions) * (len(self.sizes) or 1) * (len(self.loras) or 1)


@dataclass(frozen=True)
class BuildRecipe:
    """Content of a build recipe's file.

    Attributes:
        name: name of the build.
        matrix: every target in every precision.
        recipes: export recipes in addition to the matrix: files relative to this one, or names of built-in recipes.
        components: components to build of each recipe; all if empty.
    """

    __pydantic_config__ = _FORBID

    name: str
    matrix: Matrix | None = None
    recipes: tuple[str, ...] = ()
    components: tuple[ComponentName, ...] = ()


_BUILD: Final = TypeAdapter(BuildRecipe)


def load_recipes(files: Iterable[Path]) -> tuple[Recipe, ...]:
    """Load export recipes from files or built-in names; build recipes are expanded to their export recipes.

    Raises:
        RecipeError: a file cannot be read or is invalid, or two different recipes have the same name.
    """
    found: dict[str, Recipe] = {}
    for recipe in (recipe for file in files for recipe in _recipes_of(recipe_file(file))):
        if not is_plain_name(recipe.name) or recipe.name.startswith("."):
            raise RecipeError(f"recipe name {recipe.name!r:.80} cannot name a folder; choose another")
        if found.setdefault(recipe.name, recipe) != recipe:
            raise RecipeError(f"two different recipes are named {recipe.name}; rename one, which also names its folder")
    return tuple(found.values())


def _recipes_of(file: Path) -> list[Recipe]:
    values = read_toml(file)
    if not any(mark in values for mark in _MARKS):
        return [load_recipe(file)]
    if (control := first_control(values)) is not None:
        raise RecipeError(f"{file}: {control} holds a control character; remove it")
    build = _build_recipe(values, file)
    count = len(build.recipes) + (build.matrix.count if build.matrix else 0)
    if count > _MOST_RECIPES:
        raise RecipeError(f"{file}: names {count} recipes; the limit for one build is {_MOST_RECIPES}")
    named = [recipe_file(file.parent / name if (file.parent / name).exists() else Path(name)) for name in build.recipes]
    recipes = [load_recipe(one) for one in named] + (_spread(build.matrix, file) if build.matrix else [])
    if not recipes:
        raise RecipeError(f"{file}: names no recipe; set [matrix] targets and precisions, or recipes")
    return [recipe.widened(build.components).narrowed(build.components) for recipe in recipes]


def _spread(matrix: Matrix, file: Path) -> list[Recipe]:
    shipped = [load_recipe(_shipped(target, one, file)) for target in matrix.targets for one in matrix.precisions]
    sized = [recipe.varied(Variant(size)) for recipe in shipped for size in matrix.sizes or (None,)]
    sets = [tuple(anchored(lora, file.parent) for lora in loras) for loras in matrix.loras or ((),)]
    return [recipe.adapted(loras) for recipe in sized for loras in sets]


def _shipped(target: str, precision: str, file: Path) -> Path:
    found = builtin_recipe(target, precision)
    if found.stem not in builtin_recipes():
        known = [name.split("-", 1)[1] for name in builtin_recipes() if name.startswith(f"{target}-")]
        raise RecipeError(f"{file}: [matrix] precisions: {target} has no {precision!r:.40}, only {', '.join(known)}")
    return found


def _build_recipe(values: dict[str, Any], file: Path) -> BuildRecipe:
    try:
        # TOML arrays fill tuple fields, as in export recipes. Pydantic allows this in JSON's strict mode or Python's
        # lax mode.
        return _BUILD.validate_python(values, strict=False)
    except ValidationError as error:
        found = error.errors()[0]
        raise RecipeError(f"{file}: {'.'.join(map(str, found['loc']))}: {found['msg']}") from error
