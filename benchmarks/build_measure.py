"""What benchmarks/build.py does in its processes: each converter's own call, and our whole export."""

from __future__ import annotations

import dataclasses
import os
import resource
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from coreml_measure import THREADS, Subject
from md_export.checkpoint import open_checkpoint
from md_export.checkpoint.architectures import write_checkpoint
from md_export.engine.artifact import peak_resident_bytes
from md_export.engine.export import build, export
from md_export.engine.request import BuildRequest, Resources
from md_export.errors import MdExportError
from md_export.models.families import COMPONENTS
from md_export.parity.golden.folder import write_golden
from md_export.parity.golden.prepare import golden_source
from md_export.report.progress import building_to_stderr
from md_export.spec.manifest import Manifest, read_manifest
from md_export.spec.recipe import Recipe, Tolerance
from md_export.spec.recipe_file import load_recipe
from md_export.spec.shipped_files import builtin_recipe
from md_export.system.memory import watching
from md_export.targets.contract import LoweringJob
from md_export.targets.lowering import quiet

_NO_LIMIT: Final = 1 << 60
# Random weights: what would be a fault of a trained model's artifact is none here.
_LEAST_DB: Final = 20.0


@dataclasses.dataclass(frozen=True)
class Taken:
    """Wall and CPU seconds, and the most bytes that were resident: of a process, or of it and its workers together."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int


@dataclasses.dataclass(frozen=True)
class Exported:
    """An export with its verification; of the workers that made the artifacts, wall seconds and peaks."""

    whole: Taken
    worker_seconds: Mapping[str, float]
    worker_peaks: Mapping[str, int]


def init(subject: Subject, folder: Path) -> dict[str, int]:
    """Write the checkpoint, in float32, where it is not there; answers with the bytes of each component's weights."""
    if not folder.exists():
        write_checkpoint(folder, subject.config, 0, "float32")
    checkpoint = open_checkpoint(folder)
    return {name: checkpoint.component_bytes(name) for name in COMPONENTS}


def golden(checkpoint: Path, folder: Path, target: str, count: int) -> Taken:
    """Compute the first of the recipe's golden cases in torch."""
    plan = recipe(target, "fp16").golden
    pairs = [(prompt, seed) for prompt in plan.prompts for seed in plan.seeds]
    clock = Clock()
    folder.mkdir()
    write_golden(golden_source(open_checkpoint(checkpoint)), pairs[:count], folder)
    return clock.taken(peak_resident_bytes())


def recipe(target: str, precision: str) -> Recipe:
    """The one that ships, with thresholds that random weights meet."""
    shipped = load_recipe(builtin_recipe(target, precision))
    lowered: dict[str, Tolerance] = {name: Tolerance(_LEAST_DB) for name in shipped.components}
    return dataclasses.replace(shipped, tolerances=lowered, picture_psnr_db=_LEAST_DB)


def naive(target: str, subject: Subject, checkpoint: Path, out: Path) -> Taken:
    """Module → file by the converter's own call; libraries and weights are loaded on the clock, as in a worker."""
    torch.set_num_threads(THREADS)
    clock = Clock()
    module = open_checkpoint(checkpoint).module(subject.component)
    with quiet():
        _NAIVE[target](module, subject, out)
    return clock.taken(peak_resident_bytes())


def ours(
    target: str,
    precision: str,
    components: tuple[str, ...],
    checkpoint: Path,
    golden_cases: Path,
    out: Path,
    jobs: int | None,
) -> Exported:
    """The export of some components, verified on golden cases; with ``jobs`` by a build of so many steps at a time."""
    asked = recipe(target, precision).narrowed(components)
    clock = Clock()
    with watching(os.getpid(), _NO_LIMIT) as watch:
        if jobs is None:
            manifest, _ = export(asked, checkpoint, out, golden_cases, lambda _: None, Resources(cache=None))
        else:
            manifest = _built(BuildRequest((asked,), checkpoint, out, out / ".cache", golden_cases, jobs))
    measured = {one.component: one.measured for one in manifest.artifacts}
    return Exported(
        clock.taken(watch.peak_bytes),
        {name: found.seconds for name, found in measured.items()},
        {name: found.peak_resident_bytes for name, found in measured.items()},
    )


def _built(request: BuildRequest) -> Manifest:
    with building_to_stderr() as listener:
        outcome = build(request, listener)
    if outcome.failures:
        raise MdExportError(outcome.failures[0].reason)
    return read_manifest(outcome.exports[0].folder)


class Clock:
    """Of this process and the children that it has waited for."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), _cpu_seconds()

    def taken(self, peak_bytes: int) -> Taken:
        return Taken(time.perf_counter() - self._wall, _cpu_seconds() - self._cpu, peak_bytes)


def _cpu_seconds() -> float:
    found = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in found)


def _arguments(subject: Subject) -> tuple[torch.Tensor, ...]:
    return tuple(torch.from_numpy(value) for value in subject.inputs().values())


def _coreml(module: nn.Module, subject: Subject, out: Path) -> None:
    """coremltools' guide: trace, convert, save."""
    from md_export.targets.coreml.vendor import ct
    from md_export.targets.coreml.vendor import quiet as no_bars

    with no_bars():
        traced = torch.jit.trace(module, _arguments(subject))  # type: ignore[no-untyped-call]
        inputs = [ct.TensorType(name=name, shape=value.shape) for name, value in subject.inputs().items()]
        ct.convert(traced, inputs=inputs).save(str(out / "naive.mlpackage"))


def _tflite(module: nn.Module, subject: Subject, out: Path) -> None:
    from tflite_measure import naive as convert

    name, drawn = subject.component, subject.inputs()
    specs = COMPONENTS[name].input_specs(subject.config), COMPONENTS[name].output_specs(subject.config)
    convert(LoweringJob(name, module, *specs, drawn, recipe("tflite", "fp32").schemes[name], (), out))


def _onnx(module: nn.Module, subject: Subject, out: Path) -> None:
    torch.onnx.export(module, _arguments(subject), out / "naive.onnx", dynamo=True, verbose=False)


_NAIVE: Final[Mapping[str, Callable[[nn.Module, Subject, Path], Any]]] = {
    "coreml": _coreml,
    "tflite": _tflite,
    "onnx": _onnx,
}
