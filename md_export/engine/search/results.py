"""Results of a search: the trade-off between quality and size as data, and the choice as a recipe in readable TOML."""

from __future__ import annotations

import dataclasses
import glob
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import tomlkit
from pydantic import ConfigDict, TypeAdapter
from tomlkit.items import Array

from md_export.engine.search.frontier import Form, Point
from md_export.errors import RecipeError
from md_export.spec.recipe import Recipe, Tolerance
from md_export.spec.scheme import QuantScheme

_FORBID: Final = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Figures:
    """Size and quality of one choice.

    Attributes:
        bytes: total size of all artifacts.
        bits: average stored bits per weight over the modules with a choice.
        picture_db: PSNR of the picture in decibels; None if a component needed for the picture is missing.
        snr_db: SNR of each component's output in decibels.
    """

    __pydantic_config__ = _FORBID

    bytes: int
    bits: float
    picture_db: float | None
    snr_db: dict[str, float]


@dataclass(frozen=True)
class TradeOff:
    """Result of a search: the curve of size against the picture's PSNR, and the choice.

    Attributes:
        budget: description of the budget.
        curve: predicted figures, in order of increasing bytes.
        uniform: predicted figures for all modules in one form, by the form's label; modules that do not support the
            form stay larger.
        chosen: predicted figures for the choice.
        built: figures measured on built artifacts, by ``chosen`` or a form's label.
    """

    __pydantic_config__ = _FORBID

    target: str
    budget: str
    curve: tuple[Figures, ...]
    uniform: dict[str, Figures]
    chosen: Figures
    built: dict[str, Figures]


TRADE_OFF: Final = TypeAdapter(TradeOff)


def figures_of(point: Point) -> Figures:
    """Return the predicted figures of a choice."""
    return Figures(point.bytes, point.bits, point.picture_db, point.snr_db)


# Forms of a component's modules, by module path.
Forms = Mapping[str, Form]
_Value = TypeVar("_Value")
_PLAIN: Final = (
    "name",
    "target",
    "components",
    "rewrites",
    "allow_drift",
    "deployment_target",
    "min_litert",
    "layout",
    "form",
    "npu",
    "size",
    "loras",
)


def chosen_scheme(base: QuantScheme, forms: Forms) -> QuantScheme:
    """Return a component's scheme: the most common form as default, and one rule for each other form.

    The rules of ``base`` are replaced; its other settings stay. A module that is not in ``forms`` gets the most common
    form.

    Raises:
        RecipeError: ``keep_float`` of the base matches one of the modules, so a rule would have no effect on it.
    """
    for path in sorted(forms):
        if base.keeps_float(path):
            raise RecipeError(f"[scheme] keep_float: {path} stays in float, and a form was chosen for it")
    # Ties are broken by the smaller label.
    (common, _), *_ = sorted(Counter(forms.values()).items(), key=lambda item: (-item[1], item[0].label))
    rules = [
        form.rule(tuple(glob.escape(path) for path in sorted(forms) if forms[path] == form))
        for form in sorted(set(forms.values()) - {common}, key=lambda form: form.label)
    ]
    storage = dataclasses.asdict(common)
    return dataclasses.replace(base, rules=tuple(rules), **storage)


def chosen_recipe(base: Recipe, forms: Mapping[str, Forms], name: str) -> Recipe:
    """Return the base recipe with a new name and the chosen schemes; components without forms keep their schemes.

    Raises:
        RecipeError: as for :func:`chosen_scheme`.
    """
    schemes = {
        component: chosen_scheme(scheme, forms[component]) if forms.get(component) else scheme
        for component, scheme in base.schemes.items()
    }
    return dataclasses.replace(base, name=name, schemes=schemes)


def recipe_toml(recipe: Recipe, notes: Sequence[str] = ()) -> str:
    """Serialize a recipe to TOML; ``notes`` become comment lines at the top, one line each.

    :func:`md_export.spec.recipe_file.recipe_from_toml` parses the same recipe from it, except for schemes and
    tolerances of components that the recipe does not export.
    """
    document = tomlkit.document()
    for note in notes:
        document.add(tomlkit.comment(" ".join(note.split())))
    plain = _given(recipe)
    for key in _PLAIN:
        if key in plain:
            document.add(key, _value(plain[key]))
    schemes = tomlkit.table(is_super_table=True)
    for component, scheme in (_of(recipe, recipe.schemes) | recipe.optional_schemes).items():
        schemes.add(component, _value(_given(scheme)))
    document.add("scheme", schemes)
    tolerances = _of(recipe, recipe.tolerances) | recipe.optional_tolerances
    least = {component: _given(tolerance) for component, tolerance in tolerances.items()}
    document.add("tolerance", _value({"picture_psnr_db": recipe.picture_psnr_db, **least}))
    for key in ("sampler", "prompts", "calibration", "regression", "golden"):
        if key in plain:
            document.add(key, _value(plain[key]))
    return tomlkit.dumps(document)


def _of(recipe: Recipe, values: Mapping[str, _Value]) -> dict[str, _Value]:
    """Return the values of the components that the recipe exports."""
    return {component: values[component] for component in recipe.components}


def _given(item: Recipe | QuantScheme | Tolerance) -> dict[str, Any]:
    """Return the fields that differ from their defaults as plain data; TOML has no null, so defaults are omitted."""
    plain: dict[str, Any] = TypeAdapter(type(item)).dump_python(item, mode="json", exclude_defaults=True)
    return plain


def _value(value: Any) -> Any:
    """Convert a value to TOML; lists longer than 80 characters get one line per item, and tables come last."""
    if isinstance(value, dict):
        table = tomlkit.table()
        for key, one in sorted(value.items(), key=lambda item: _is_table(item[1])):
            table.add(key, _value(one))
        return table
    if not isinstance(value, list):
        return value
    if _is_table(value):
        tables = tomlkit.aot()
        for item in value:
            tables.append(_value(item))
        return tables
    array: Array = tomlkit.array()
    array.extend(value)
    return array.multiline(sum(len(str(item)) for item in value) > 80)


def _is_table(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and bool(value) and isinstance(value[0], dict))
