"""The Core ML target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from md_export.spec.scheme import QuantScheme, WeightStorage
from md_export.spec.tensors import Arrays
from md_export.targets.contract import CountsCosts, Lints, LoweringJob, Saved, Target
from md_export.targets.lint.report import LintReport
from md_export.targets.operations import OpCost

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class CoremlModel:
    """A model between two stages, on disk so that each stage has only one copy of the weights in memory.

    Attributes:
        package: ``.mlpackage`` of coremltools in the job's workdir.
        modules: name of a value in the program → path of its torch module: the owner of a weight, the caller of an
            operation.
        notes: the job's metadata, for the saved package.
    """

    package: Path
    modules: dict[str, str]
    notes: Mapping[str, str] = field(default_factory=dict)

    def quantize(self, job: LoweringJob) -> CoremlModel:
        from md_export.targets.coreml.quantize import quantize

        return quantize(self, job)

    def save(self, path: Path) -> None:
        from md_export.targets.coreml.save import save

        save(self, path)


class CoremlTarget(Target, Lints, CountsCosts):
    """Core ML packages; our runtime executes them without a Mac."""

    name = "coreml"
    suffix = ".mlpackage"
    requires = ("coremltools",)
    preload = ("md_export.targets.coreml.lower",)
    distributions = ("coremltools",)
    title = "Core ML (iPhone Neural Engine)"

    def lower(self, job: LoweringJob) -> CoremlModel:
        from md_export.targets.coreml.lower import lower

        return lower(job)

    def weight_storage(self, path: str, layer: nn.Module, scheme: QuantScheme) -> WeightStorage | None:
        from md_export.targets.coreml.weights import weight_storage

        return weight_storage(path, layer, scheme)

    def saved(self) -> Saved:
        from md_export.targets.coreml import saved

        return saved

    def lint(self, path: Path, system: str | None = None, batches: Sequence[Arrays] = ()) -> LintReport:
        from md_export.targets.coreml.lint import lint

        return lint(path, system, batches)

    def costs(self, path: Path) -> tuple[OpCost, ...]:
        from md_export.targets.coreml.describe import costs

        return costs(path)
