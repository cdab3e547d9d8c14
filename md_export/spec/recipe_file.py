"""Read recipes from TOML files, and serialize them as JSON for workers and manifests.

Recipes are TOML files (``recipes/README.md`` documents every field); a flag such as ``--fp16`` names one of them.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import tomli
from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from md_export.errors import RecipeError
from md_export.spec.calibration import CalibrationPlan
from md_export.spec.loras import anchored
from md_export.spec.names import COMPONENT_NAMES, OPTIONAL_NAMES, ORDER
from md_export.spec.prompts import PromptPlan
from md_export.spec.recipe import GoldenPlan, Recipe, Regression, Tolerance
from md_export.spec.recipe_checks import TABLES
from md_export.spec.sampler import SamplerPlan
from md_export.spec.scheme import QuantScheme, WeightRule
from md_export.spec.shipped_files import builtin_recipes, recipe_file
from md_export.system.files import read_regular
from md_export.system.terminal_text import first_control

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

# A recipe from a search, with a rule for each of the full-size model's 700 modules, has 50 KB.
_LARGEST_FILE: Final = 1 << 17


def read_toml(path: Path) -> dict[str, object]:
    """Return the content of a recipe file.

    Raises:
        RecipeError: the file cannot be read, is too large, or is not TOML.
    """
    try:
        content = read_regular(path, _LARGEST_FILE)
    except OSError as error:
        known = ", ".join(builtin_recipes())
        raise RecipeError(f"{path}: cannot be read: {error.strerror}; name a .toml file or one of {known}") from error
    if content is None:
        raise RecipeError(f"{path}: not a regular file of at most {_LARGEST_FILE} bytes; name a recipe")
    return _parse_toml(content, path)


def _parse_toml(content: bytes, path: Path) -> dict[str, object]:
    try:
        return tomli.loads(content.decode())  # tomllib's time grows with the square of a dotted key's length
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: cannot be read: {error}") from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise RecipeError(f"{path}: not valid TOML: {error}") from error


_RECIPE = TypeAdapter(Recipe)
_MOST_FINDINGS: Final = 20
# Longest chain of recipes that extend each other.
_MOST_EXTENDED: Final = 8


def load_recipe(path: Path) -> Recipe:
    """Read a recipe file.

    Raises:
        RecipeError: unreadable TOML, or an unknown, missing or wrong field; names file, table and field.
    """
    return recipe_from_dict(_spread(_extended(read_toml(path), path), path), str(path))


def _extended(values: dict[str, object], path: Path, depth: int = 0) -> dict[str, object]:
    """Return the fields of a file merged over those of the recipe that it ``extends``, a shipped one or a file."""
    values = {**values, **_anchored(values, path)}
    base = values.pop("extends", None)
    if base is None:
        return values
    if not isinstance(base, str) or depth == _MOST_EXTENDED:
        raise RecipeError(
            f"{path}: extends: {base!r:.80} is not a recipe, or extends itself; name a shipped recipe, or a .toml file "
            "relative to this one"
        )
    if "name" not in values:
        raise RecipeError(f"{path}: name is missing; a recipe that extends another needs a different name")
    file = recipe_file(path.parent / base) if base not in builtin_recipes() else recipe_file(Path(base))
    return _merged(_extended(read_toml(file), file, depth + 1), values)


def _anchored(values: Mapping[str, object], path: Path) -> dict[str, object]:
    """Return the LoRAs of a file with paths resolved against it; validation refuses anything but a list of names."""
    named = {field: values.get(field) for field in ("loras", "styles")}
    return {
        field: [anchored(lora, path.parent) for lora in loras]
        for field, loras in named.items()
        if isinstance(loras, list) and all(isinstance(lora, str) for lora in loras)
    }


def _merged(base: Mapping[str, object], own: Mapping[str, object]) -> dict[str, object]:
    """Return the fields of both, tables merged recursively; where both have another value, that of ``own``."""
    merged = {**base, **own}
    for key in base.keys() & own.keys():
        old, new = base[key], own[key]
        if isinstance(old, dict) and isinstance(new, dict):
            merged[key] = _merged(old, new)
    return merged


def recipe_from_toml(content: bytes, path: Path) -> Recipe:
    """Validate a recipe file's content; ``path`` is for error messages.

    Raises:
        RecipeError: as :func:`load_recipe`.
    """
    return recipe_from_dict(_spread(_parse_toml(content, path), path), str(path))


def recipe_from_dict(values: Mapping[str, object], source: str) -> Recipe:
    """Validate a recipe as :func:`recipe_to_dict` returns it; ``source`` is for error messages."""
    if (found := first_control(values)) is not None:
        raise RecipeError(f"{source}: {found} holds a control character; remove it")
    try:
        # From JSON, pydantic's strict mode accepts arrays for tuples and integers for floats; from Python it does not.
        return _RECIPE.validate_json(json.dumps(values))
    except ValidationError as error:
        findings = [_describe(source, dict(item)) for item in error.errors()[:_MOST_FINDINGS]]
        raise RecipeError("; ".join(_without_repeats(findings))) from error
    except RecipeError as error:
        raise RecipeError(f"{source}: {error}") from error
    except (TypeError, ValueError, RecursionError) as error:
        raise RecipeError(f"{source}: a value has a type that no recipe field takes: {error}") from error


def recipe_to_dict(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe as JSON-ready dicts and lists; :func:`recipe_from_dict` reads them."""
    plain: dict[str, Any] = from_json(_RECIPE.dump_json(recipe))
    return plain


def _spread(values: Mapping[str, object], path: Path) -> dict[str, object]:
    """Return the fields with ``[scheme]`` and ``[scheme.unet]`` resolved into one entry per component."""
    components = values.get("components", list(COMPONENT_NAMES))
    names = [name for name in components if isinstance(name, str)] if isinstance(components, list) else []
    spread = {key: value for key, value in values.items() if key not in TABLES.values()}
    spread["components"] = components
    for field, table in TABLES.items():
        if field in values or f"optional_{field}" in values:
            raise RecipeError(f"{path}: unknown field {field!r}; did you mean the table [{table}]?")
        content = values.get(table, {})
        if not isinstance(content, dict):
            raise RecipeError(f"{path}: {table} must be a table: [{table}]")
        shared = {key: value for key, value in content.items() if not isinstance(value, dict)}
        if table == "tolerance" and "picture_psnr_db" in shared:
            spread["picture_psnr_db"] = shared.pop("picture_psnr_db")
        for key, value in content.items():
            if isinstance(value, dict) and key not in ORDER:
                raise RecipeError(f"{path}: [{table}.{key}] is not a component; use {', '.join(ORDER)}")
        spread[field] = {name: {**shared, **content.get(name, {})} for name in names}
        aside = [name for name in OPTIONAL_NAMES if name in content and name not in names]
        if aside:
            spread[f"optional_{field}"] = {name: {**shared, **content[name]} for name in aside}
    return spread


def _describe(source: str, item: Mapping[str, Any]) -> str:
    """Return one pydantic error as ``file: [table] field: message``."""
    where = [str(part).removeprefix("optional_") for part in item["loc"]]
    if where and where[0] in TABLES:
        where[0] = TABLES[where[0]]
    elif where == ["picture_psnr_db"]:
        where = ["tolerance", "picture_psnr_db"]
    table = f"[{'.'.join(where[:-1])}] " if len(where) > 1 else ""
    field = where[-1] if where else "the file"
    if item["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        known = _known_fields("rules" if "rules" in where[:-1] else where[0])
        near = get_close_matches(field, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
        return f"{source}: {table}unknown field {field!r}; {hint}"
    if item["type"] in ("missing", "missing_argument"):
        return f"{source}: {table}{field} is missing"
    return f"{source}: {table}{field}: {str(item['msg'])[0].lower()}{str(item['msg'])[1:]}"


def _without_repeats(findings: list[str]) -> list[str]:
    """Return the errors with each of a shared ``[scheme]`` table once instead of once per component."""
    shared = [re.sub(rf"\[(\w+)\.({'|'.join(ORDER)})\]", r"[\1]", text) for text in findings]
    kept = [short if shared.count(short) > 1 else full for short, full in zip(shared, findings, strict=True)]
    return list(dict.fromkeys(kept))


def _known_fields(table: str) -> list[str]:
    kinds: dict[str, type[DataclassInstance]] = {
        "scheme": QuantScheme,
        "rules": WeightRule,
        "tolerance": Tolerance,
        "golden": GoldenPlan,
        "calibration": CalibrationPlan,
        "regression": Regression,
        "sampler": SamplerPlan,
        "prompts": PromptPlan,
    }
    if table in kinds:
        return [field.name for field in dataclasses.fields(kinds[table])]
    own = [field.name for field in dataclasses.fields(Recipe)]
    return [TABLES.get(name, name) for name in own if name != "picture_psnr_db" and not name.startswith("optional_")]
