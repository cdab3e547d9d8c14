"""The fields of recipe files as Markdown, from the dataclasses that read them."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from types import NoneType, UnionType
from typing import Any, Final, Literal, Union, get_args, get_origin, get_type_hints

from md_export.engine.build_recipe import BuildRecipe, Matrix
from md_export.spec.calibration import CalibrationPlan, RangeRule
from md_export.spec.names import COMPONENT_NAMES
from md_export.spec.prompts import PromptPlan
from md_export.spec.recipe import GoldenPlan, Recipe, Regression, Tolerance
from md_export.spec.recipe_checks import TABLES
from md_export.spec.sampler import SamplerPlan
from md_export.spec.scheme import QuantScheme, WeightRule
from md_export.spec.variant import Variant

PLACE: Final = "<!-- schema of recipes -->"
Row = tuple[str, str, str, str]
# Fields of the class that a file writes as tables, or that are never written.
_NOT_WRITTEN: Final = frozenset({"picture_psnr_db", *TABLES, *(f"optional_{name}" for name in TABLES)})
_EXTENDS: Final = ("extends", "string", "", "Recipe to start from: a name that ships, or a file relative to this one.")
_PICTURE: Final = ("picture_psnr_db", "number", "required", "Least PSNR of the picture in dB; in `[tolerance]` alone.")
# Heading, class, and rows of the file that no field of the class has.
SECTIONS: Final[tuple[tuple[str, type, tuple[Row, ...]], ...]] = (
    ("Top level", Recipe, (_EXTENDS,)),
    ("`[scheme]`, `[scheme.unet]`, …", QuantScheme, ()),
    ("`rules` of a scheme", WeightRule, ()),
    ("`[tolerance]`, `[tolerance.unet]`, …", Tolerance, (_PICTURE,)),
    ("`[golden]`", GoldenPlan, ()),
    ("`[calibration]`", CalibrationPlan, ()),
    ("`[sampler]`", SamplerPlan, ()),
    ("`[prompts]`", PromptPlan, ()),
    ("`[regression]`", Regression, ()),
    ("Build recipes", BuildRecipe, ()),
    ("`[matrix]` of a build recipe", Matrix, ()),
)
_PLAIN: Final = {str: "string", int: "integer", float: "number", bool: "boolean"}
_TOLD_BY: Final = {kind.__name__: kind for kind in (Variant, RangeRule, QuantScheme)}
_ENTRY: Final = re.compile(r"^    (?P<names>\w+(?:, \w+)*): (?P<text>.*(?:\n     .*)*)", re.MULTILINE)
_ROLE: Final = re.compile(r":\w+:`~?(?:[\w.]*\.)?(\w+)`")
_AS_IN: Final = re.compile(r"as in `(\w+)`")


def schema() -> str:
    """Return one table for each table of a recipe file."""
    return "\n\n".join(f"## {title}\n\n{_table((*more, *rows(kind)))}" for title, kind, more in SECTIONS)


def rows(kind: type) -> tuple[Row, ...]:
    """Return name, type, default and description of each field that a file may write."""
    hints, told = get_type_hints(kind), descriptions(kind)
    return tuple(
        (field.name, type_name(hints[field.name]), _default(kind, field), told[field.name])
        for field in dataclasses.fields(kind)
        if field.name not in _NOT_WRITTEN
    )


def descriptions(kind: type) -> dict[str, str]:
    """Return what the section ``Attributes:`` of a class says of each field; ``as in X`` is what X says."""
    _, _, section = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:\n")
    told = {}
    for entry in _ENTRY.finditer(section):
        text = _ROLE.sub(r"`\1`", " ".join(entry["text"].split())).replace("``", "`").replace("|", "\\|")
        other = _AS_IN.match(text)
        for name in entry["names"].split(", "):
            told[name] = descriptions(_TOLD_BY[other[1]])[name] if other else text[0].upper() + text[1:]
    return told


def type_name(hint: Any) -> str:
    """Return a type as a reader of TOML knows it."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return ", ".join(f"`{json.dumps(value)}`" for value in inner)
    if origin in (Union, UnionType):
        return " or ".join(type_name(one) for one in inner if one is not NoneType)
    if origin is tuple:
        return f"array of {type_name(inner[0])}" if inner[-1] is ... else f"`[{', '.join(map(type_name, inner))}]`"
    return _PLAIN.get(hint, "table")


def _default(kind: type, field: dataclasses.Field[Any]) -> str:
    if (kind, field.name) == (Recipe, "components"):
        return ", ".join(f"`{name}`" for name in COMPONENT_NAMES)
    if field.default is dataclasses.MISSING:
        return "required"
    return "" if field.default in (None, ()) else f"`{json.dumps(field.default)}`"


def _table(of: tuple[Row, ...]) -> str:
    return "\n".join(
        [
            "| field | type | default | |",
            "|---|---|---|---|",
            *(f"| `{name}` | {' | '.join(rest)} |" for name, *rest in of),
        ]
    )
