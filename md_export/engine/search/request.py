"""Request of a search: its budget, parsed from ``--budget``, its starting recipe, and the forms of modules."""

from __future__ import annotations

import dataclasses
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from md_export.engine.request import Resources
from md_export.engine.search.frontier import Form
from md_export.errors import UsageError
from md_export.spec.names import COMPONENT_NAMES
from md_export.spec.recipe import Recipe
from md_export.spec.recipe_file import load_recipe
from md_export.spec.shipped_files import builtin_recipe

_EXAMPLES: Final = "picture=34, snr=20, bytes=2.1MB, bits=4.5 or score=0.98"


@dataclass(frozen=True)
class Budget:
    """Limits of a search, all of which must hold; None means no limit.

    Attributes:
        picture_db: minimum PSNR of the picture in decibels.
        snr_db: minimum SNR of each component's output in decibels.
        score: minimum score from the judge for the built export; it is measured, not predicted.
        bytes: maximum size of all artifacts together, in bytes.
        bits: maximum of the average stored bits per weight over all modules with a choice.
    """

    picture_db: float | None = None
    snr_db: float | None = None
    score: float | None = None
    bytes: int | None = None
    bits: float | None = None

    @property
    def spelled(self) -> str:
        """Description of the budget in words, for a report."""
        words = (
            (self.picture_db, "picture at least {:g} dB"),
            (self.snr_db, "each component at least {:g} dB"),
            (self.score, "score at least {:g}"),
            (self.bytes, "at most {:,} bytes"),
            (self.bits, "at most {:g} bits per weight"),
        )
        return ", ".join(text.format(value) for value, text in words if value is not None)


def parse_budget(texts: Sequence[str], judge: str | None = None) -> Budget:
    """Parse the values of all ``--budget`` options into one budget.

    Args:
        judge: command that prints scores; required with a score, and only allowed with one.

    Raises:
        UsageError: no text, an unknown or repeated name, an invalid value, or only one of a score and a judge.
    """
    if not texts:
        raise UsageError(f"a search needs a --budget: {_EXAMPLES}; several may be given, and all must hold")
    values: dict[str, float] = {}
    for text in texts:
        name, _, value = text.partition("=")
        if name not in _LIMITS:
            raise UsageError(f"--budget {text!r:.60}: write {_EXAMPLES}")
        limit = _LIMITS[name]
        if limit.field in values:
            raise UsageError(f"--budget {name} is given twice; give it once")
        match = re.fullmatch(limit.pattern, value.strip(), re.IGNORECASE)
        number = float(match[1]) * _UNITS[match[2].lower()] if match else math.nan
        if not limit.least <= number <= limit.most:
            raise UsageError(f"--budget {text!r:.60}: write {limit.wanted}")
        values[limit.field] = int(number) if name == "bytes" else number
    if "score" in values and judge is None:
        raise UsageError("--budget score=… needs a judge: add --judge COMMAND, which prints a score for an export")
    if judge is not None and "score" not in values:
        raise UsageError("--judge gives scores for --budget score=…; add that, or leave --judge out")
    return Budget(**values)  # type: ignore[arg-type]  # bytes is read as an int


@dataclass(frozen=True)
class _Limit:
    """Field of Budget that a name before "=" in ``--budget`` fills, and its valid values: text, range and examples."""

    field: str
    pattern: str
    least: float
    most: float
    wanted: str


_UNITS: Final = {"": 1, "db": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
_NUMBER: Final = r"([0-9]*\.?[0-9]+)"
_ABOVE_0: Final = math.ulp(0.0)
_FINITE: Final = sys.float_info.max
_DECIBELS: Final = (rf"{_NUMBER}\s*(|dB)", _ABOVE_0, 200, "decibels above 0 and up to 200, as picture=34 or snr=20")
_BYTES: Final = rf"{_NUMBER}\s*([kmg]?|[kmg]i(?=b))b?"
_SCORE: Final = r"(-?[0-9]*\.?[0-9]+)()"
_LIMITS: Final = {
    "picture": _Limit("picture_db", *_DECIBELS),
    "snr": _Limit("snr_db", *_DECIBELS),
    # Any finite number.
    "score": _Limit("score", _SCORE, -_FINITE, _FINITE, "the least score that the judge may give, as score=0.98"),
    # No disk holds more than 10**15 bytes.
    "bytes": _Limit("bytes", _BYTES, 1, 10**15, "a size, as bytes=2.1MB, bytes=800kB or bytes=2MiB"),
    # float32 has 32 bits per weight.
    "bits": _Limit("bits", f"{_NUMBER}()", _ABOVE_0, 32, "bits above 0 and up to 32, as bits=4.5"),
}


# Estimates have a relative standard deviation of √(2/32) = 25 %, 1.1 dB.
DIRECTIONS: Final = 32


@dataclass(frozen=True)
class SearchRequest:
    """Options of a search.

    Attributes:
        recipe: recipe file to start from; its rewrites, activations and thresholds are kept. None: the target's
            built-in recipe.
        judge: command that prints a score for an export, for a budget with a score.
        rounding: rounding to use instead of the recipe's.
        components: components to choose forms for, all if empty; the others keep the recipe's schemes.
        golden: folder of golden cases for measurement and verification; None: the checkpoint's.
        prompts: prompts to make golden cases from, instead of ``golden``.
        directions: number of random directions to estimate sensitivities from.
        jobs: number of processes that estimate at a time on this machine, each with its own copy of the model; None:
            one that uses all cores.
        dask: address of a scheduler whose workers run the measurements instead.
        out: folder to write; must not exist.
        journal: file of measurements, new or from an earlier search; None: a file beside ``out``.
        resources: resources that builds may use; None: the defaults.
    """

    checkpoint: Path
    target: str
    budget: Budget
    out: Path
    recipe: Path | None = None
    judge: str | None = None
    rounding: Literal["nearest", "mse", "gptq"] | None = None
    components: tuple[str, ...] = ()
    golden: Path | None = None
    prompts: tuple[str, ...] = ()
    directions: int = DIRECTIONS
    jobs: int | None = None
    dask: str | None = None
    journal: Path | None = None
    resources: Resources | None = None


@dataclass(frozen=True)
class Start:
    """Start of a search for one target.

    Attributes:
        precision: precision of the built-in recipe.
        forms: forms that a module can have, in order of increasing bits; the last one is float.
    """

    precision: str
    forms: tuple[Form, ...]


STARTS: Final[Mapping[str, Start]] = {
    "coreml": Start(
        "palette4",
        (
            *(Form(weights, "group", group_size=16) for weights in ("palette2", "palette3", "palette4")),
            *(Form(weights, "tensor") for weights in ("palette6", "palette8")),
            Form("float16"),
        ),
    ),
    "tflite": Start("int4", (Form("int4"), Form("int8"), Form("float32"))),
    "coreai": Start(
        "palette4",
        (
            *(Form(weights, "group", group_size=16) for weights in ("palette2", "palette4")),
            *(Form(weights, "tensor") for weights in ("palette6", "palette8")),
            Form("float32"),
        ),
    ),
    "onnx": Start("int4", (Form("int4", "block", block_size=32), Form("int4"), Form("int8"), Form("float32"))),
}


def starting_recipe(request: SearchRequest) -> Recipe:
    """Return the request's recipe, or the target's built-in one, with the rounding to use in the search.

    The built-in recipe uses GPTQ rounding, which needs calibration, unless the request selects another.

    Raises:
        UsageError: the recipe is for another target, has several sampling steps, LoRAs or chunks, lacks one of the
            request's components, or lacks a component for the picture that the budget limits.
    """
    recipe = load_recipe(request.recipe or builtin_recipe(request.target, STARTS[request.target].precision))
    if recipe.target != request.target:
        raise UsageError(f"the recipe {recipe.name} is for {recipe.target}; search with --target {recipe.target}")
    if recipe.sampler is not None:
        raise UsageError(
            f"the recipe {recipe.name} takes {recipe.sampler.steps} steps, and a search measures a single one; "
            "search with a recipe without [sampler], then export with the rules that were found and --steps"
        )
    if recipe.loras:
        raise UsageError(
            f"the recipe {recipe.name} has LoRAs, and a search takes them as part of the checkpoint: write one with "
            "md-export adapt, search on that folder, and leave out loras"
        )
    if recipe.chunks:
        raise UsageError(
            f"the recipe {recipe.name} has chunks, and a search chooses for whole components: leave out chunks, and "
            "give --chunks to the export of the recipe that is found"
        )
    rounding = request.rounding or ("gptq" if request.recipe is None else None)
    schemes = {
        name: dataclasses.replace(
            scheme,
            rounding=rounding or scheme.rounding,
            bias_correction=scheme.bias_correction if request.recipe else rounding != "nearest",
        )
        for name, scheme in recipe.schemes.items()
    }
    missing = [name for name in request.components if name not in recipe.components]
    if missing:
        raise UsageError(f"the recipe {recipe.name} has no {missing[0]}; it has {', '.join(recipe.components)}")
    if request.budget.picture_db is not None and not set(COMPONENT_NAMES) <= set(recipe.components):
        raise UsageError(
            f"the recipe {recipe.name} makes no picture: it lacks a component; give --budget snr=… instead"
        )
    return dataclasses.replace(recipe, schemes=schemes)
