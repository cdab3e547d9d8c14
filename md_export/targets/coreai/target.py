"""The Core AI target."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from md_export.spec.scheme import QuantScheme, WeightStorage
from md_export.spec.tensors import Array, Arrays, Runner
from md_export.targets.contract import Description, Lints, LoweringJob, Step, Target
from md_export.targets.lint.report import LintReport
from md_export.targets.stored import Constant, StoredWeight

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class CoreaiModel:
    """A program in memory.

    Attributes:
        program: ``coreai.authoring.AIProgram``; changed in place.
        notes: those of the job.
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
    """Core AI assets (``.aimodel``) for iOS 27 and macOS 27, executed off a Mac by Apple's own runtime."""

    name = "coreai"
    suffix = ".aimodel"
    requires = ("coreai", "coreai_torch")
    distributions = ("coreai-core", "coreai-torch")
    title = "Core AI (iOS 27, macOS 27)"
    system = "Linux x86-64 with glibc 2.34 or newer, or a Mac"

    def lower(self, job: LoweringJob) -> CoreaiModel:
        from md_export.targets.coreai.lower import lower

        return lower(job)

    def weight_storage(self, path: str, layer: nn.Module, scheme: QuantScheme) -> WeightStorage | None:
        from md_export.targets.coreai.weights import weight_storage

        return weight_storage(path, layer, scheme)

    def describe(self, path: Path) -> Description:
        from md_export.targets.coreai.describe import describe

        return describe(path)

    def load(self, path: Path, runtime: str | None = None) -> Runner:
        from md_export.targets.coreai.run import load

        return load(path, runtime)

    def edit(self, path: Path) -> AbstractContextManager[list[Constant]]:
        from md_export.targets.coreai.stored import edit

        return edit(path)

    def store_as_float(self, path: Path) -> bool:
        from md_export.targets.coreai.stored import store_as_float

        return store_as_float(path)

    def steps(self, path: Path) -> tuple[Step, ...]:
        from md_export.targets.coreai.run import steps

        return steps(path)

    def values(self, path: Path, inputs: Arrays, names: Collection[str]) -> dict[str, Array]:
        from md_export.targets.coreai.run import values

        return values(path, inputs, names)

    def stored_weights(self, path: Path, scheme: QuantScheme) -> Iterator[StoredWeight]:
        from md_export.targets.coreai.stored import stored_weights

        return stored_weights(path, scheme)

    def lint(self, path: Path, system: str | None = None, batches: Sequence[Arrays] = ()) -> LintReport:
        from md_export.targets.coreai.describe import lint

        return lint(path, system, batches)
