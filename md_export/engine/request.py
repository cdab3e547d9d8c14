"""What shall be built: build recipes, and the export recipes that they stand for."""

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
from md_export.system.files import is_plain_name
from md_export.system.terminal_text import first_control
from md_export.system.workspace import workspace

_FORBID: Final = ConfigDict(extra="forbid", strict=True)
_MOST_RECIPES: Final = 1000
# What an export recipe never has, a build recipe always.
_MARKS: Final = ("matrix", "recipes")


@dataclass(frozen=True)
class Matrix:
    """Every target in every precision: the recipes ``<target>-<precision>`` that ship.

    Attributes:
        sizes: each of them in every one.
        loras: each with every set of LoRAs, files relative to this one; an empty set stands for the checkpoint alone.
    """

    __pydantic_config__ = _FORBID

    targets: tuple[Literal["coreml", "tflite", "onnx", "coreai"], ...]
    precisions: tuple[str, ...]
    sizes: tuple[int, ...] = ()
    loras: tuple[tuple[str, ...], ...] = ()

    @property
    def count(self) -> int:
        """Of the recipes."""
        return len(self.targets) * len(self.precisions) * (len(self.sizes) or 1) * (len(self.loras) or 1)


@dataclass(frozen=True)
class BuildRecipe:
    """A build recipe's file.

    Attributes:
        recipes: export recipes beside the matrix: files, relative to this one, or names of those that ship.
        components: only these of each.
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
        out: folder that gets one export for each recipe, by its name.
        only: name of the folder of the only recipe's export, which must not exist; one that falls short is kept as
            ``<only>.rejected``. None: an export that is there is replaced where it differs.
        golden: golden cases; None: the checkpoint's own, else made from the recipes' prompts.
        cache: folder of what was built before.
        jobs: steps at a time.
        most_bytes: memory that all steps that run at a time may hold together; None: most of what is installed.
        dask: a scheduler on whose workers the steps run: as many at a time as there are workers, ``most_bytes`` each.
        store: given with it: URL of a folder that this machine and all workers read and write.
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
        """Folder for the only export where it falls short."""
        return None if self.only is None else self.out / f"{self.only}.rejected"


def default_jobs() -> int:
    """One step for two cores."""
    return max(1, (os.cpu_count() or 1) // 2)


@dataclass(frozen=True)
class Resources:
    """What the engine may use; fields as of :class:`BuildRequest`.

    Attributes:
        cache: None: one of its own, which is removed at the end.
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
        """A request with one recipe, while its cache is needed."""
        with nullcontext(self.cache) if self.cache else workspace(out) as cache:
            limits = self.jobs, self.most_bytes, self.dask, self.store
            yield BuildRequest((recipe,), checkpoint, out, cache, golden, *limits, only)


_BUILD: Final = TypeAdapter(BuildRecipe)


def load_recipes(files: Iterable[Path]) -> tuple[Recipe, ...]:
    """The export recipes that files or names stand for, build recipes among them spread out.

    Raises:
        RecipeError: a file cannot be read or is wrong, or two recipes of one name differ.
    """
    found: dict[str, Recipe] = {}
    for recipe in (recipe for file in files for recipe in _recipes_of(recipe_file(file))):
        if not is_plain_name(recipe.name) or recipe.name.startswith("."):
            raise RecipeError(f"recipe name {recipe.name!r:.80} cannot name a folder; choose another")
        if found.setdefault(recipe.name, recipe) != recipe:
            raise RecipeError(f"two different recipes are called {recipe.name}; rename one, its folder bears its name")
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
        raise RecipeError(f"{file}: names {count} recipes; {_MOST_RECIPES} are the most that one build takes")
    named = [recipe_file(file.parent / name if (file.parent / name).exists() else Path(name)) for name in build.recipes]
    recipes = [load_recipe(one) for one in named] + (_spread(build.matrix, file) if build.matrix else [])
    if not recipes:
        raise RecipeError(f"{file}: names no recipe; fill [matrix] targets and precisions, or recipes")
    return [recipe.widened(build.components).narrowed(build.components) for recipe in recipes]


def _spread(matrix: Matrix, file: Path) -> list[Recipe]:
    shipped = [load_recipe(_shipped(target, one, file)) for target in matrix.targets for one in matrix.precisions]
    sized = [recipe.sized(size) for recipe in shipped for size in matrix.sizes or (None,)]
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
        # As with export recipes, arrays stand for tuples: that is JSON's strict mode, or Python's lax one.
        return _BUILD.validate_python(values, strict=False)
    except ValidationError as error:
        found = error.errors()[0]
        raise RecipeError(f"{file}: {'.'.join(map(str, found['loc']))}: {found['msg']}") from error


def lora_files(recipes: Iterable[Recipe]) -> dict[str, Path]:
    """All LoRA files of some recipes, by the name that steps know them by."""
    files = dict.fromkeys(Path(split_lora(text)[0]) for recipe in recipes for text in recipe.loras)
    return {f"lora {index}": file for index, file in enumerate(files)}


def lora_inputs(loras: Iterable[str], files: dict[str, Path]) -> tuple[LoraInput, ...]:
    """The LoRAs of a recipe as a step's request names them."""
    names = {str(file): name for name, file in files.items()}
    found = [(split_lora(text)[0], text) for text in loras]
    return tuple((names[str(Path(file))], text[len(file) :]) for file, text in found)
