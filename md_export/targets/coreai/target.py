"""The Core AI target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from md_export.spec.scheme import QuantScheme, WeightStorage
from md_export.spec.tensors import Arrays
from md_export.targets.contract import Lints, LoweringJob, Saved, Target
from md_export.targets.lint.report import LintReport

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class CoreaiModel:
    """A program in memory.

    Attributes:
        program: ``coreai.authoring.AIProgram``; changed in place.
        notes: the job's metadata.
    """

    program: Any
    notes: Mapping[str, str] = field(default_factory=dict)

    def quantize(self, job: LoweringJob) -> CoreaiModel:
        from md_export.targets.coreai.quantize import quantize

        return quantize(self, job)

    def save(self, path: Path) -> None:
        from md_export.targets.coreai.save import save

        save(self, path)


class CoreaiTarget(Target, Lints):
    """Core AI assets (``.aimodel``) for iOS 27 and macOS 27; Apple's runtime executes them on Linux, too."""

    name = "coreai"
    suffix = ".aimodel"
    requires = ("coreai", "coreai_torch")
    preload = ("md_export.targets.coreai.lower",)
    distributions = ("coreai-core", "coreai-torch")
    title = "Core AI (iOS 27, macOS 27)"
    system = "Linux x86-64 with glibc 2.34 or newer, or a Mac"

    def lower(self, job: LoweringJob) -> CoreaiModel:
        from md_export.targets.coreai.lower import lower

        return lower(job)

    def weight_storage(self, path: str, layer: nn.Module, scheme: QuantScheme) -> WeightStorage | None:
        from md_export.targets.coreai.weights import weight_storage

        return weight_storage(path, layer, scheme)

    def saved(self) -> Saved:
        from md_export.targets.coreai import saved

        return saved

    def lint(self, path: Path, system: str | None = None, batches: Sequence[Arrays] = ()) -> LintReport:
        from md_export.targets.coreai.describe import lint

        return lint(path, system, batches)
