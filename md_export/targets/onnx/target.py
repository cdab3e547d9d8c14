"""The ONNX target."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from md_export.spec.artifact import ArtifactEntry
from md_export.spec.scheme import QuantScheme, WeightStorage
from md_export.spec.tensors import Arrays
from md_export.targets.contract import CountsCosts, LoweringJob, Saved, ShownByExplorer, Target, WritesAdapters
from md_export.targets.operations import ExplorerGraph, OpCost

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import nn


@dataclass(frozen=True)
class OnnxModel:
    """A graph in memory.

    Attributes:
        model: onnx_ir model that shares storage with the exported torch module; changed in place.
    """

    model: ir.Model

    def quantize(self, job: LoweringJob) -> OnnxModel:
        from md_export.targets.onnx.quantize import quantize

        return quantize(self, job)

    def save(self, path: Path) -> None:
        from md_export.targets.onnx.save import save

        save(self, path)


class OnnxTarget(Target, CountsCosts, ShownByExplorer, WritesAdapters):
    """ONNX: standard opset-18 graphs for onnxruntime, float32, float16 or int8 QDQ."""

    name = "onnx"
    suffix = ".onnx"
    requires = ("onnx", "onnxscript", "onnxruntime")
    preload = (
        "md_export.targets.onnx.lower",
        "onnxscript.function_libs.torch_lib.ops",
        "torch.onnx._internal.exporter._compat",
    )
    distributions = ("onnx", "onnxscript", "onnxruntime")
    title = "ONNX (onnxruntime)"
    as_written = "unoptimized"
    adapter_suffix = ".onnx_adapter"
    forms: ClassVar = {"ort": ".ort", "cpu_fused": ".onnx"}

    def lower(self, job: LoweringJob) -> OnnxModel:
        from md_export.targets.onnx.lower import lower

        return lower(job)

    def weight_storage(self, path: str, layer: nn.Module, scheme: QuantScheme) -> WeightStorage | None:
        from md_export.targets.onnx.weights import weight_storage

        return weight_storage(path, layer, scheme)

    def saved(self) -> Saved:
        from md_export.targets.onnx import saved

        return saved

    def costs(self, path: Path) -> tuple[OpCost, ...]:
        from md_export.targets.onnx.describe import costs

        return costs(path)

    def explorer_graph(self, path: Path) -> ExplorerGraph:
        from md_export.targets.onnx.describe import explorer_graph

        return explorer_graph(path)

    def write_adapter(self, values: Arrays, path: Path) -> None:
        from md_export.targets.onnx.adapter import write_adapter

        write_adapter(values, path)

    def compile_contexts(
        self, names: Sequence[str], folder: Path, entries: tuple[ArtifactEntry, ...], progress: Callable[[str], None]
    ) -> tuple[ArtifactEntry, ...]:
        from md_export.targets.onnx.npu.process import compile_contexts

        return compile_contexts(names, folder, entries, progress)
