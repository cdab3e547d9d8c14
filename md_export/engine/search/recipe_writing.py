"""Conversion of a choice to a recipe, and of a recipe to readable TOML."""

from __future__ import annotations

import dataclasses
import glob
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeVar

import tomlkit
from pydantic import TypeAdapter
from tomlkit.items import Array, Table

from md_export.engine.search.choice import Form
from md_export.errors import RecipeError
from md_export.spec.recipe import Recipe, Tolerance
from md_export.spec.scheme import QuantScheme, WeightRule

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
        schemes.add(component, _scheme(scheme))
    document.add("scheme", schemes)
    tolerances = _table({"picture_psnr_db": recipe.picture_psnr_db})
    for component, tolerance in (_of(recipe, recipe.tolerances) | recipe.optional_tolerances).items():
        tolerances.add(component, _table(_given(tolerance)))
    document.add("tolerance", tolerances)
    for key in ("sampler", "calibration", "regression", "golden"):
        if key in plain:
            document.add(key, _table(plain[key]))
    return tomlkit.dumps(document)


def _of(recipe: Recipe, values: Mapping[str, _Value]) -> dict[str, _Value]:
    """Return the values of the components that the recipe exports."""
    return {component: values[component] for component in recipe.components}


def _scheme(scheme: QuantScheme) -> Table:
    values = _given(scheme)
    values.pop("rules", None)
    table = _table(values)
    if scheme.rules:
        rules = tomlkit.aot()
        for rule in scheme.rules:
            rules.append(_table(_given(rule)))
        table.add("rules", rules)
    return table


def _given(item: Recipe | QuantScheme | WeightRule | Tolerance) -> dict[str, Any]:
    """Return the fields that differ from their defaults as plain data; TOML has no null, so defaults are omitted."""
    plain: dict[str, Any] = TypeAdapter(type(item)).dump_python(item, mode="json", exclude_defaults=True)
    return plain


def _table(values: Mapping[str, Any]) -> Table:
    table = tomlkit.table()
    for key, value in values.items():
        table.add(key, _value(value))
    return table


def _value(value: Any) -> Any:
    """Convert a value to TOML; lists longer than 80 characters get one line per item."""
    if not isinstance(value, list):
        return value
    array: Array = tomlkit.array()
    array.extend(value)
    return array.multiline(sum(len(str(item)) for item in value) > 80)
