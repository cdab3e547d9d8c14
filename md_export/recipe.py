"""A shipping configuration as data: target, scheme, rewrites, thresholds, golden prompts.

Recipes are TOML files (``recipes/README.md`` documents every field); a flag such as ``--fp16`` names one
of them. Thresholds have no default in code: a recipe that lacks one is refused.
"""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from md_export.budget import Regression
from md_export.calibration import CalibrationPlan, check_cases
from md_export.errors import RecipeError
from md_export.files import is_plain_name, read_regular
from md_export.loras import anchored, label
from md_export.names import COMPONENT_NAMES, OPTIONAL_NAMES, ORDER, ComponentName
from md_export.sampler import SamplerPlan, sampler_of
from md_export.scheme import QuantScheme as QuantScheme
from md_export.scheme import WeightRule
from md_export.socs import SOCS
from md_export.visible import first_control

# Modules that VAE encoder and decoder have under the same name.
_OF_BOTH: Final = ("conv_in", "conv_out", "mid_block")
_TABLES: Final = {"schemes": "scheme", "tolerances": "tolerance"}
_OF_ONE_TARGET: Final = {"deployment_target": "coreml", "layout": "coreml", "form": "onnx", "npu": "onnx"}
_LARGEST_SIZE: Final = 1 << 14
_LONGEST_NAME: Final = 200
# A threshold of NaN or -Infinity would be none.
_FORBID = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Tolerance:
    """Least quality of one component's outputs against the golden ones, in float64."""

    __pydantic_config__ = _FORBID

    snr_db: float
    psnr_db: float | None = None
    cosine: float | None = None
    max_abs: float | None = None


@dataclass(frozen=True)
class GoldenPlan:
    """Prompts and seeds from which golden cases are made for a checkpoint that brings none."""

    __pydantic_config__ = _FORBID

    prompts: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        """Refuse more cases than anybody would wait for. RecipeError names the field."""
        check_cases("golden", self.prompts, self.seeds)


@dataclass(frozen=True)
class Recipe:
    """One shipping configuration.

    Attributes:
        schemes, tolerances: one entry per component.
        rewrites: names from REWRITES, applied in this order.
        allow_drift: take rewrites that the checkpoint was not trained with.
        deployment_target: oldest system that must load a Core ML package; iOS17 where a recipe names none.
        layout: whose names and shapes a Core ML package's surface has; our own where a recipe names none.
        form: what onnxruntime makes of an ONNX graph: a file for its mobile builds (``ort``), or one that is fused for
            the processor at hand (``cpu_fused``); a portable graph where a recipe names none.
        npu: chips from SOCS for whose NPUs each ONNX graph is compiled, too.
        calibration: what int8 activations and rounding are calibrated on; every other golden case where a recipe names
            nothing.
        regression: how much worse than an older export one may be; comparing needs it.
        size: side of the picture in pixels; what the checkpoint was trained for where a recipe names none.
        sampler: more steps than one.
        loras: added to the checkpoint, each ``FILE`` or ``FILE:scale``; in a file, paths are relative to it.
        optional_schemes, optional_tolerances: what a file says of components that it does not list, for
            :meth:`widened`; not written.
    """

    __pydantic_config__ = _FORBID

    name: str
    target: str
    components: tuple[ComponentName, ...]
    schemes: dict[str, QuantScheme]
    tolerances: dict[str, Tolerance]
    picture_psnr_db: float
    golden: GoldenPlan
    rewrites: tuple[str, ...] = ()
    allow_drift: bool = False
    deployment_target: Literal["iOS17", "iOS18"] | None = None
    layout: Literal["swift"] | None = None
    form: Literal["ort", "cpu_fused"] | None = None
    npu: tuple[str, ...] = ()
    calibration: CalibrationPlan | None = None
    regression: Regression | None = None
    size: int | None = None
    sampler: SamplerPlan | None = None
    loras: tuple[str, ...] = ()
    optional_schemes: Annotated[dict[str, QuantScheme], Field(exclude=True)] = dataclasses.field(default_factory=dict)
    optional_tolerances: Annotated[dict[str, Tolerance], Field(exclude=True)] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.size is not None and not 0 < self.size <= _LARGEST_SIZE:
            raise RecipeError(f"size: {self.size!s:.20} is no side of a picture; give pixels, up to {_LARGEST_SIZE}")
        # Stands in titles, which read brackets as styles, and in names of files.
        if not is_plain_name(self.name) or self.name.startswith(".") or set(self.name) & set("[]"):
            raise RecipeError(f"name: {self.name!r:.80} could not name a file; take letters, digits, - and _")
        if self.sampler is not None:
            self.sampler.check_rewrites(self.rewrites)
        if self.sampler is not None and self.layout is not None:
            raise RecipeError(
                f"recipe {self.name}: layout {self.layout} is for one step, and [sampler] takes {self.sampler.steps}; "
                "leave out the one or the other"
            )
        if self.layout is not None and self.encodes:
            raise RecipeError(
                f"recipe {self.name}: layout {self.layout} has no place for a VAE encoder that gives a latent's mean; "
                "leave out the one or the other"
            )
        for field, target in _OF_ONE_TARGET.items():
            if getattr(self, field) and self.target != target:
                raise RecipeError(f"recipe {self.name}: {field} is for the target {target}; leave it out")
        for soc in self.npu:
            if soc not in SOCS:
                raise RecipeError(f"npu: {soc!r:.40} is no chip that is known here; use {', '.join(SOCS)}")
        if self.npu and self.form:
            raise RecipeError(f"recipe {self.name}: the NPU's compiler takes no form {self.form}; give npu or form")
        if len(set(self.npu)) < len(self.npu):
            raise RecipeError(f"recipe {self.name}: npu names a chip twice: {', '.join(self.npu)}")
        halves = [name for name in self.components if getattr(self.schemes.get(name), "activations", "") == "float16"]
        if self.form and halves:
            raise RecipeError(
                f"recipe {self.name}: form {self.form} cannot compute {', '.join(halves)} in float16, since "
                "onnxruntime would write its casts to float32 into the graph; take float32 or int8 (--fp32, --int8)"
            )
        if len(set(self.components)) < len(self.components):
            raise RecipeError(f"recipe {self.name}: components names one twice: {', '.join(self.components)}")
        for name in self.components:
            for field, table in _TABLES.items():
                if name not in getattr(self, field):
                    raise RecipeError(f"recipe {self.name}: [{table}.{name}] is missing")

    def sized(self, size: int | None) -> Recipe:
        """The same recipe for pictures of ``size`` pixels a side, its name followed by it; None: as it is."""
        return self if size is None else dataclasses.replace(self, name=f"{self.name}-{size}", size=size)

    def adapted(self, loras: tuple[str, ...]) -> Recipe:
        """The same recipe with some LoRAs more, its name followed by them; none: as it is."""
        if not loras:
            return self
        return dataclasses.replace(self, name=f"{self.name}{label(loras)}"[:_LONGEST_NAME], loras=(*self.loras, *loras))

    def sampled(self, steps: int | None, guidance: float | None) -> Recipe:
        """The same recipe in so many steps, its name followed by them; None: as it is.

        Raises:
            RecipeError: guidance for one step, or a rewrite that is right for one step only.
        """
        plan = sampler_of(steps, guidance, self.sampler)
        if plan is None or plan == self.sampler:
            return self
        name = self.name if self.sampler else f"{self.name}-{plan.kind}"
        return dataclasses.replace(self, name=name, sampler=plan)

    @property
    def encodes(self) -> bool:
        """Whether the VAE encoder is among its components."""
        return "vae_encoder" in self.components

    def widened(self, components: tuple[str, ...]) -> Recipe:
        """The same recipe with those of ``components`` that it lacks and that not every checkpoint has.

        Each has scheme and tolerance of the one that it stands beside, but for the rules for that one's modules.
        """
        added = [name for name in components if name in OPTIONAL_NAMES and name not in self.components]
        schemes, tolerances = dict(self.schemes), dict(self.tolerances)
        for name in added:
            beside = OPTIONAL_NAMES[name]
            if beside not in self.schemes or beside not in self.tolerances:
                raise RecipeError(f"recipe {self.name}: [scheme.{name}] and [tolerance.{name}] are missing")
            schemes[name] = self.optional_schemes.get(name) or _alike(self.schemes[beside], beside, name)
            tolerances[name] = self.optional_tolerances.get(name) or self.tolerances[beside]
        kept = {*self.components, *added}
        return dataclasses.replace(
            self,
            components=tuple(name for name in ORDER if name in kept) if added else self.components,
            schemes=schemes,
            tolerances=tolerances,
        )

    def completed(self, components: tuple[str, ...]) -> Recipe:
        """The same recipe with all that a checkpoint's pictures need, where it has what every checkpoint's need.

        ``components``: what the checkpoint is made of.
        """
        return self.widened(components) if set(COMPONENT_NAMES) <= set(self.components) else self

    def narrowed(self, components: tuple[str, ...]) -> Recipe:
        """The same recipe for some of its components.

        Raises:
            RecipeError: a component that the recipe does not have.
        """
        for name in components:
            if name not in self.components:
                raise RecipeError(f"recipe {self.name} has no component {name!r}; it has {', '.join(self.components)}")
        kept = tuple(name for name in self.components if name in components)
        return dataclasses.replace(self, components=kept) if components else self


def _alike(scheme: QuantScheme, beside: str, name: str) -> QuantScheme:
    """The scheme without what is about modules that only ``beside`` has."""
    old, new = f"{beside.removeprefix('vae_')}.", f"{name.removeprefix('vae_')}."
    globs = [glob.removeprefix(old) for glob in scheme.keep_float if glob.startswith(old)]
    kept = tuple(new + glob for glob in globs if glob.startswith(_OF_BOTH))
    return dataclasses.replace(scheme, keep_float=kept, rules=())


_RECIPE = TypeAdapter(Recipe)
# The rules of a search for each of the full-size model's 700 modules have 50 KB; tomllib takes a time and memory
# that grow with the square of a dotted key.
_LARGEST_FILE: Final = 1 << 17
_MOST_FINDINGS: Final = 20


def load_recipe(path: Path) -> Recipe:
    """Read a recipe file.

    Raises:
        RecipeError: unreadable TOML, or an unknown, missing or wrong field; names file, table and field.
    """
    try:
        content = read_regular(path, _LARGEST_FILE)
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error}") from error
    if content is None:
        raise RecipeError(f"{path}: no regular file of at most {_LARGEST_FILE} bytes; this is no recipe")
    recipe = recipe_from_toml(content, path)
    return dataclasses.replace(recipe, loras=tuple(anchored(lora, path.parent) for lora in recipe.loras))


def recipe_from_toml(content: bytes, path: Path) -> Recipe:
    """Validate a recipe file's content; ``path`` stands in error messages.

    Raises:
        RecipeError: as :func:`load_recipe`.
    """
    try:
        values = tomllib.loads(content.decode())
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: cannot be read: {error}") from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise RecipeError(f"{path}: not valid TOML: {error}") from error
    return recipe_from_dict(_spread(values, path), str(path))


def recipe_from_dict(values: Mapping[str, Any], source: str) -> Recipe:
    """Validate the spread-out form that :func:`recipe_to_dict` writes; ``source`` stands in error messages."""
    if (found := first_control(values)) is not None:
        raise RecipeError(f"{source}: {found} holds a control character, which no recipe needs; take it out")
    try:
        # Through JSON: strict mode then takes arrays for tuples and integers for floats, and nothing else.
        return _RECIPE.validate_json(json.dumps(values))
    except ValidationError as error:
        findings = [_describe(source, dict(item)) for item in error.errors()[:_MOST_FINDINGS]]
        raise RecipeError("; ".join(_without_repeats(findings))) from error
    except RecipeError as error:
        raise RecipeError(f"{source}: {error}") from error
    except (TypeError, ValueError, RecursionError) as error:
        raise RecipeError(f"{source}: a value has a type that no recipe field takes: {error}") from error


def recipe_to_dict(recipe: Recipe) -> dict[str, Any]:
    """Plain JSON-ready form; :func:`recipe_from_dict` reads it back."""
    plain: dict[str, Any] = json.loads(_RECIPE.dump_json(recipe))
    return plain


def _spread(values: dict[str, Any], path: Path) -> dict[str, Any]:
    """Resolve ``[scheme]`` and ``[scheme.unet]`` into one entry per component."""
    components = values.get("components", list(COMPONENT_NAMES))
    names = [name for name in components if isinstance(name, str)] if isinstance(components, list) else []
    spread = {key: value for key, value in values.items() if key not in _TABLES.values()}
    spread["components"] = components
    for field, table in _TABLES.items():
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
                raise RecipeError(f"{path}: [{table}.{key}] names no component; use {', '.join(ORDER)}")
        spread[field] = {name: {**shared, **content.get(name, {})} for name in names}
        aside = [name for name in OPTIONAL_NAMES if name in content and name not in names]
        if aside:
            spread[f"optional_{field}"] = {name: {**shared, **content[name]} for name in aside}
    return spread


def _describe(source: str, item: Mapping[str, Any]) -> str:
    """One pydantic finding as ``file: [table] field: what is wrong``."""
    where = [str(part).removeprefix("optional_") for part in item["loc"]]
    if where and where[0] in _TABLES:
        where[0] = _TABLES[where[0]]
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
    """A shared ``[scheme]`` field is wrong for every component alike: say it once."""
    shared = [re.sub(rf"\[(\w+)\.({'|'.join(ORDER)})\]", r"[\1]", text) for text in findings]
    kept = [short if shared.count(short) > 1 else full for short, full in zip(shared, findings, strict=True)]
    return list(dict.fromkeys(kept))


def _known_fields(table: str) -> list[str]:
    kinds: dict[str, Any] = {
        "scheme": QuantScheme,
        "rules": WeightRule,
        "tolerance": Tolerance,
        "golden": GoldenPlan,
        "calibration": CalibrationPlan,
        "regression": Regression,
        "sampler": SamplerPlan,
    }
    if table in kinds:
        return [field.name for field in dataclasses.fields(kinds[table])]
    own = [field.name for field in dataclasses.fields(Recipe)]
    return [_TABLES.get(name, name) for name in own if name != "picture_psnr_db" and not name.startswith("optional_")]
