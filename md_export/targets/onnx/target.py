"""The ONNX target."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from md_export.spec.artifact import ArtifactEntry
from md_export.spec.scheme import QuantScheme, WeightStorage
from md_export.spec.tensors import Array, Arrays, Runner
from md_export.targets.contract import (
    CompilesForNpu,
    CountsCosts,
    Description,
    HasForms,
    LoweringJob,
    RunsAsWritten,
    Step,
    Target,
)
from md_export.targets.operations import OpCost
from md_export.targets.stored import Constant, StoredWeight

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import nn


@dataclass(frozen=True)
class OnnxModel:
    """A graph in memory.

    Attributes:
        model: shares storage with the torch module that it was exported from; changed in place.
    """

    model: ir.Model

    def quantize(self, job: LoweringJob) -> OnnxModel:
        from md_export.targets.onnx.quantize import quantize

        return quantize(self, job)

    def save(self, path: Path) -> None:
        from md_export.targets.onnx.save import save

        save(self, path)


class OnnxTarget(Target, CountsCosts, RunsAsWritten, HasForms, CompilesForNpu):
    """ONNX: standard opset-18 graphs for onnxruntime, float32, float16 or int8 QDQ."""

    name = "onnx"
    suffix = ".onnx"
    requires = ("onnx", "onnxscript", "onnxruntime")
    distributions = ("onnx", "onnxscript", "onnxruntime")
    title = "ONNX (onnxruntime)"
    as_written = "unoptimized"
    forms: ClassVar = {"ort": ".ort", "cpu_fused": ".onnx"}

    def lower(self, job: LoweringJob) -> OnnxModel:
        from md_export.targets.onnx.lower import lower

        return lower(job)

    def weight_storage(self, path: str, layer: nn.Module, scheme: QuantScheme) -> WeightStorage | None:
        from md_export.targets.onnx.weights import weight_storage

        return weight_storage(path, layer, scheme)

    def describe(self, path: Path) -> Description:
        from md_export.targets.onnx.describe import describe

        return describe(path)

    def load(self, path: Path, runtime: str | None = None) -> Runner:
        from md_export.targets.onnx.run import load

        return load(path, runtime)

    def edit(self, path: Path) -> AbstractContextManager[list[Constant]]:
        from md_export.targets.onnx.stored import edit

        return edit(path)

    def store_as_float(self, path: Path) -> bool:
        from md_export.targets.onnx.stored import store_as_float

        return store_as_float(path)

    def steps(self, path: Path) -> tuple[Step, ...]:
        from md_export.targets.onnx.run import steps

        return steps(path)

    def values(self, path: Path, inputs: Arrays, names: Collection[str]) -> dict[str, Array]:
        from md_export.targets.onnx.run import values

        return values(path, inputs, names)

    def stored_weights(self, path: Path, scheme: QuantScheme) -> Iterator[StoredWeight]:
        from md_export.targets.onnx.stored import stored_weights

        return stored_weights(path, scheme)

    def costs(self, path: Path) -> tuple[OpCost, ...]:
        from md_export.targets.onnx.describe import costs

        return costs(path)

    def compile_contexts(
        self,
        names: Sequence[str],
        folder: Path,
        entries: Sequence[ArtifactEntry],
        progress: Callable[[str], None],
    ) -> tuple[ArtifactEntry, ...]:
        from md_export.targets.onnx.npu.process import compile_contexts

        return compile_contexts(names, folder, entries, progress)
