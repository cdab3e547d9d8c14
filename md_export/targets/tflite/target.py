"""The TFLite target."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from md_export.spec.scheme import QuantScheme, WeightStorage
from md_export.spec.tensors import Arrays
from md_export.targets.contract import CountsCosts, Lints, LoweringJob, Saved, ShownByExplorer, Target
from md_export.targets.lint.report import LintReport
from md_export.targets.operations import ExplorerGraph, OpCost

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class TfliteModel:
    """A .tflite file in the job's scratch folder, so that full-size weights are not in memory twice."""

    path: Path

    def quantize(self, job: LoweringJob) -> TfliteModel:
        from md_export.targets.tflite.quantize import quantize

        return quantize(self, job)

    def save(self, path: Path) -> None:
        # "x": an artifact is never overwritten.
        with self.path.open("rb") as content, path.open("xb") as target:
            shutil.copyfileobj(content, target, length=16 * 1024 * 1024)


class TfliteTarget(Target, Lints, CountsCosts, ShownByExplorer):
    """TFLite: float32, float16-weight or int8 files for LiteRT, lowered by litert_torch."""

    name = "tflite"
    suffix = ".tflite"
    requires = ("litert_torch", "ai_edge_litert", "ai_edge_quantizer")
    preload = ("md_export.targets.tflite.lower", "litert_torch._convert.runtime_fold")
    distributions = ("litert-torch", "ai-edge-litert", "ai-edge-quantizer", "litert-converter")
    title = "TFLite/LiteRT (Android GPU)"

    def lower(self, job: LoweringJob) -> TfliteModel:
        from md_export.targets.tflite.lower import lower

        return lower(job)

    def weight_storage(self, path: str, layer: nn.Module, scheme: QuantScheme) -> WeightStorage | None:
        from md_export.targets.tflite.weights import weight_storage

        return weight_storage(path, layer, scheme)

    def saved(self) -> Saved:
        from md_export.targets.tflite import saved

        return saved

    def lint(self, path: Path, system: str | None = None, batches: Sequence[Arrays] = ()) -> LintReport:
        from md_export.targets.tflite.lint import lint

        return lint(path, system, batches)

    def costs(self, path: Path) -> tuple[OpCost, ...]:
        from md_export.targets.tflite.describe import costs

        return costs(path)

    def explorer_graph(self, path: Path) -> ExplorerGraph:
        from md_export.targets.tflite.describe import explorer_graph

        return explorer_graph(path)
