"""Plan of a build: all steps for its exports, ordered so that each step comes after the steps that it needs.

Each kind of step has its request and result class. Both are plain data without paths or host names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Final, Literal, TypeAlias

from pydantic import Field, TypeAdapter

from md_export.parity.verdict import Verdict
from md_export.spec.artifact import ArtifactEntry
from md_export.spec.manifest import Drift
from md_export.spec.recipe import Recipe
from md_export.spec.style import StyleInput

# Name of a LoRA's file among the inputs, and the suffix after the file in a recipe, such as ``:0.5``.
LoraInput: TypeAlias = tuple[str, str]

# Modules that every step imports, and the one that reads CLIP's tokenizer.
MODEL_MODULES: Final = ("md_export.engine.steps", "transformers.models.clip.tokenization_clip")


@dataclass(frozen=True)
class _Request:
    recipe: Recipe
    loras: tuple[LoraInput, ...]
    styles: tuple[StyleInput, ...] = field(default=(), kw_only=True)


@dataclass(frozen=True)
class GoldenRequest(_Request):
    """Request for golden cases: inputs and the outputs that the artifacts of ``recipe`` must compute."""

    kind: Literal["golden"] = "golden"


@dataclass(frozen=True)
class CalibrationRequest(_Request):
    """Request for calibration cases by the recipe's ``[calibration]``; ``golden`` is the key of the golden cases."""

    golden: str
    kind: Literal["calibration"] = "calibration"


@dataclass(frozen=True)
class ArtifactRequest(_Request):
    """Request for one artifact.

    Attributes:
        notes: metadata to store in the artifact.
        golden: key of the golden cases.
        cases: key of the calibration cases; None: the golden cases serve for calibration.
    """

    component: str
    notes: dict[str, str]
    golden: str
    cases: str | None
    kind: Literal["artifact"] = "artifact"


@dataclass(frozen=True)
class PromptsRequest(_Request):
    """Request for the text embeddings of the recipe's stored prompts, computed by torch."""

    kind: Literal["prompts"] = "prompts"


@dataclass(frozen=True)
class ExportRequest(_Request):
    """Request for a verified export with its manifest, from golden cases and parts given by key.

    ``parts``: artifacts, and the text embeddings if it stores some.
    """

    golden: str
    parts: tuple[str, ...]
    kind: Literal["export"] = "export"


Request: TypeAlias = Annotated[
    GoldenRequest | CalibrationRequest | ArtifactRequest | PromptsRequest | ExportRequest, Field(discriminator="kind")
]


@dataclass(frozen=True)
class CasesResult:
    """Result of making golden or calibration cases, or text embeddings.

    Attributes:
        drift: measured drift of the rewrites that change the function; None without such rewrites.
    """

    drift: Drift | None = None
    kind: Literal["cases"] = "cases"


@dataclass(frozen=True)
class ArtifactResult:
    """Result of making an artifact: its entry for the manifest."""

    entry: ArtifactEntry
    kind: Literal["artifact"] = "artifact"


@dataclass(frozen=True)
class ExportResult:
    """Result of verifying an export.

    Attributes:
        hops: one line per failing component, which names the stage where its accuracy drops.
        others: SHA-256 of each file in the export that comes from earlier steps.
    """

    verdict: Verdict[None]
    hops: tuple[str, ...] = ()
    others: dict[str, str] = field(default_factory=dict)
    kind: Literal["export"] = "export"


Result: TypeAlias = Annotated[CasesResult | ArtifactResult | ExportResult, Field(discriminator="kind")]


@dataclass(frozen=True)
class Inputs:
    """Paths of the steps' inputs on one machine.

    Attributes:
        golden: folder of the given golden cases; None if none were given.
        loras: LoRA files, by their names in requests.
        seen: folder of the hashes of files that were read; None: every file is read.
    """

    checkpoint: Path
    golden: Path | None = None
    loras: Mapping[str, Path] = field(default_factory=dict)
    seen: Path | None = None


@dataclass(frozen=True)
class Cost:
    """Cost of a step: peak resident bytes of its processes together, and wall-clock seconds."""

    peak_bytes: int
    seconds: float


@dataclass(frozen=True)
class Step:
    """One unit of work, which runs in one process.

    Attributes:
        key: cache key of the result.
        label: human-readable name of the result.
        needs: keys of the steps that it depends on.
        cost_key: key shared by steps with about the same cost.
        cost: predicted cost.
    """

    key: str
    label: str
    needs: tuple[str, ...]
    request: Request
    cost_key: str
    cost: Cost

    @property
    def kind(self) -> str:
        """Kind of the step: ``golden``, ``calibration``, ``artifact``, ``prompts`` or ``export``."""
        return self.request.kind


@dataclass(frozen=True)
class ExportPlan:
    """One export of a plan.

    Attributes:
        name: name of its folder.
        key: cache key of its last step.
        space: estimated size in bytes.
    """

    name: str
    target: str
    key: str
    space: int


@dataclass(frozen=True)
class Plan:
    """The steps and exports of a build.

    ``advice``: messages for the user, for example that the model was not trained for one step.
    """

    steps: tuple[Step, ...]
    exports: tuple[ExportPlan, ...]
    advice: tuple[str, ...] = ()

    def step(self, key: str) -> Step:
        """Return the step with the given key."""
        return self._by_key[key]

    @cached_property
    def _by_key(self) -> dict[str, Step]:
        return {step.key: step for step in self.steps}


PLAN: Final = TypeAdapter(Plan)
