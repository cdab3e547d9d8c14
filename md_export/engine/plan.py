"""A plan: all steps that lead to some exports, in an order in which each comes after those that it needs.

Each step has a request and a result of its own class: both are data, and name neither folders nor machines.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final, Literal, TypeAlias

from pydantic import Field, TypeAdapter

from md_export.parity.verdict import Verdict
from md_export.spec.artifact import ArtifactEntry
from md_export.spec.manifest import Drift
from md_export.spec.recipe import Recipe

# Name of a LoRA's file among the inputs, and what follows the file in a recipe, such as ``:0.5``.
LoraInput: TypeAlias = tuple[str, str]


@dataclass(frozen=True)
class _Request:
    recipe: Recipe
    loras: tuple[LoraInput, ...]


@dataclass(frozen=True)
class GoldenRequest(_Request):
    """Golden cases of what the artifacts of ``recipe`` must compute."""

    kind: Literal["golden"] = "golden"


@dataclass(frozen=True)
class CalibrationRequest(_Request):
    """Cases by the recipe's ``[calibration]``; ``golden`` is the key of the cases that judge."""

    golden: str
    kind: Literal["calibration"] = "calibration"


@dataclass(frozen=True)
class ArtifactRequest(_Request):
    """One artifact. ``golden`` and ``cases`` are keys; without ``cases`` the golden ones calibrate."""

    component: str
    notes: dict[str, str]
    golden: str
    cases: str | None
    kind: Literal["artifact"] = "artifact"


@dataclass(frozen=True)
class ExportRequest(_Request):
    """Artifacts and golden cases, by their keys, as one export with its manifest, verified."""

    golden: str
    parts: tuple[str, ...]
    kind: Literal["export"] = "export"


Request: TypeAlias = Annotated[
    GoldenRequest | CalibrationRequest | ArtifactRequest | ExportRequest, Field(discriminator="kind")
]


@dataclass(frozen=True)
class CasesResult:
    """Golden or calibration cases; ``drift`` of rewrites that change the function, None where there are none."""

    drift: Drift | None = None
    kind: Literal["cases"] = "cases"


@dataclass(frozen=True)
class ArtifactResult:
    """The artifact's entry of the manifest."""

    entry: ArtifactEntry
    kind: Literal["artifact"] = "artifact"


@dataclass(frozen=True)
class ExportResult:
    """The verdict on an export.

    Attributes:
        hops: for each component whose numbers fall short, where they do.
        others: SHA-256 of each file that the export has from the steps before it.
    """

    verdict: Verdict[None]
    hops: tuple[str, ...] = ()
    others: dict[str, str] = field(default_factory=dict)
    kind: Literal["export"] = "export"


Result: TypeAlias = Annotated[CasesResult | ArtifactResult | ExportResult, Field(discriminator="kind")]


@dataclass(frozen=True)
class Inputs:
    """Where a machine has the inputs of all steps.

    Attributes:
        golden: cases that were given; None where there are none.
        loras: files by the names that requests know them by.
    """

    checkpoint: Path
    golden: Path | None = None
    loras: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Cost:
    """What a step takes: most bytes resident at once in its processes, and wall seconds."""

    peak_bytes: int
    seconds: float


@dataclass(frozen=True)
class Step:
    """One process.

    Attributes:
        key: cache key of its result.
        label: what it makes, for people.
        needs: keys of the steps before it.
        cost_key: the same for steps that take about as much.
        cost: predicted.
    """

    key: str
    label: str
    needs: tuple[str, ...]
    request: Request
    cost_key: str
    cost: Cost

    @property
    def kind(self) -> str:
        """``golden``, ``calibration``, ``artifact`` or ``export``."""
        return self.request.kind


@dataclass(frozen=True)
class ExportPlan:
    """One export; ``name`` is its folder's, ``key`` its last step's. ``space`` bytes are about what it will have."""

    name: str
    target: str
    key: str
    space: int


@dataclass(frozen=True)
class Plan:
    """Steps and exports of a build."""

    steps: tuple[Step, ...]
    exports: tuple[ExportPlan, ...]

    def step(self, key: str) -> Step:
        """The step of that key."""
        return next(step for step in self.steps if step.key == key)


_PLAN: Final = TypeAdapter(Plan)


def plan_to_json(plan: Plan) -> str:
    """JSON that :func:`plan_from_json` reads back."""
    return _PLAN.dump_json(plan).decode()


def plan_from_json(text: str | bytes) -> Plan:
    """Read what :func:`plan_to_json` gave; ValueError where it is something else."""
    return _PLAN.validate_json(text, strict=True)
