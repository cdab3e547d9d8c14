"""Build requests, and build recipes, which are expanded to export recipes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from md_export.engine.cache import default_root
from md_export.engine.plan import LoraInput
from md_export.errors import RecipeError
from md_export.spec.loras import anchored, split_lora
from md_export.spec.names import ComponentName
from md_export.spec.recipe import Recipe
from md_export.spec.recipe_file import load_recipe, read_toml
from md_export.spec.shipped_files import builtin_recipe, builtin_recipes, recipe_file
from md_export.spec.variant import Size, Variant
from md_export.system.files import is_plain_name
from md_export.system.terminal_text import first_control
from md_export.system.workspace import workspace

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


@dataclass(frozen=True)
class BuildRequest:
    """One call of ``md-export build``.

    Attributes:
        checkpoint: folder of the checkpoint.
        out: folder that receives one export per recipe, named after the recipe.
        only: name of the export's folder if there is exactly one recipe; the folder must not exist. An export that
            fails verification is kept as ``<only>.rejected``. None: an existing export is replaced if it differs.
        golden: folder of golden cases; None: the checkpoint's cases, or cases made from the recipes' prompts.
        cache: folder of the cache.
        jobs: number of steps that run at the same time.
        most_bytes: memory in bytes for all running steps together; None: three quarters of the installed memory.
        dask: address of a Dask scheduler; its workers run the steps, one step per worker, ``most_bytes`` for each.
        store: required with ``dask``: URL of a folder that this machine and all workers can read and write.
    """

    recipes: tuple[Recipe, ...]
    checkpoint: Path
    out: Path
    cache: Path
    golden: Path | None = None
    jobs: int = 1
    most_bytes: int | None = None
    dask: str | None = None
    store: str | None = None
    only: str | None = None

    @property
    def rejected(self) -> Path | None:
        """Folder for an export that fails verification; None without ``only``."""
        return None if self.only is None else self.out / f"{self.only}.rejected"


def default_jobs() -> int:
    """Return the default number of concurrent steps: one per two cores, at least one."""
    return max(1, (os.cpu_count() or 1) // 2)


@dataclass(frozen=True)
class Resources:
    """Resources that the engine may use; the fields are those of :class:`BuildRequest`.

    Attributes:
        cache: folder of the cache; None: a temporary cache that is removed at the end.
    """

    cache: Path | None = field(default_factory=default_root)
    jobs: int = field(default_factory=default_jobs)
    most_bytes: int | None = None
    dask: str | None = None
    store: str | None = None

    @contextmanager
    def request(
        self, recipe: Recipe, checkpoint: Path, out: Path, golden: Path | None, only: str | None = None
    ) -> Iterator[BuildRequest]:
        """Yield a request with one recipe; a temporary cache is removed when the context ends."""
        with nullcontext(self.cache) if self.cache else workspace(out) as cache:
            limits = self.jobs, self.most_bytes, self.dask, self.store
            yield BuildRequest((recipe,), checkpoint, out, cache, golden, *limits, only)


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


def lora_files(recipes: Iterable[Recipe]) -> dict[str, Path]:
    """Return the LoRA files of the recipes, by the names that steps use for them."""
    files = dict.fromkeys(Path(split_lora(text)[0]) for recipe in recipes for text in recipe.loras)
    return {f"lora {index}": file for index, file in enumerate(files)}


def lora_inputs(loras: Iterable[str], files: dict[str, Path]) -> tuple[LoraInput, ...]:
    """Return the LoRAs of a recipe as (name, suffix) pairs for a step's request."""
    names = {str(file): name for name, file in files.items()}
    found = [(split_lora(text)[0], text) for text in loras]
    return tuple((names[str(Path(file))], text[len(file) :]) for file, text in found)
