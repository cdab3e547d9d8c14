"""Run TFLite files on LiteRT's GPU engine, each time in a separate process."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from md_export.errors import MissingExtraError
from md_export.spec.tensors import Array, Arrays, load_batches, save_batches
from md_export.system.isolation import Limits, attempt
from md_export.targets.tflite.gpu.engine import GpuRun, run_on_gpu

_REFERENCE: Final = "reference.safetensors"


@dataclass(frozen=True)
class GpuExecution:
    """Result of a run on LiteRT's GPU engine.

    Attributes:
        outputs: one dict for each set of inputs; empty if the engine failed.
        reference: outputs of XNNPACK, if only the first ops were run.
        resident: whether every op ran on the GPU.
        compile_seconds, run_seconds: time of one compilation, and of all executions together.
        failure: reason for missing outputs: the engine's error, a crash, or the time limit.
        timed_out: whether the time limit was the reason.
        log: output of the engine; :func:`md_export.targets.tflite.gpu.log.read_log` parses it.
    """

    outputs: list[dict[str, Array]]
    reference: list[dict[str, Array]]
    resident: bool
    compile_seconds: float
    run_seconds: float
    failure: str | None
    timed_out: bool
    log: str


def execute_on_gpu(path: Path, batches: Sequence[Arrays], limit_s: float, ops: int | None = None) -> GpuExecution:
    """Run a .tflite file, or its first ``ops`` ops, on LiteRT's GPU engine, for ``limit_s`` seconds at most.

    Raises:
        MissingExtraError: there is no Vulkan driver. Every other failure is returned.
    """
    with tempfile.TemporaryDirectory(prefix="md-export-") as scratch:
        ended = attempt(run_first_ops, GpuJob(path, batches, ops, Path(scratch)), Limits(limit_s))
        if isinstance(ended.error, MissingExtraError):
            raise ended.error
        reference = Path(scratch) / _REFERENCE
        run = ended.result or GpuRun([], resident=False, compile_seconds=0.0, run_seconds=0.0)
        return GpuExecution(
            outputs=run.outputs,
            reference=load_batches(reference) if reference.is_file() else [],
            resident=run.resident,
            compile_seconds=run.compile_seconds,
            run_seconds=run.run_seconds,
            failure=str(ended.error) if ended.error else ended.death or None,
            timed_out=ended.timed_out,
            log=ended.log,
        )


@dataclass(frozen=True)
class GpuJob:
    """A file, the inputs of each execution, the number of its ops to run (None: all), and a folder for outputs."""

    path: Path
    batches: Sequence[Arrays]
    ops: int | None
    scratch: Path


def run_first_ops(job: GpuJob) -> GpuRun | None:
    """Run a file on the GPU engine in this process, or its first ops there and on XNNPACK; None if there are no ops.

    XNNPACK's outputs go to a file, so they are available even if the GPU engine then ends the process.
    """
    from md_export.targets.tflite.observe import write_prefix
    from md_export.targets.tflite.run import load

    if job.ops is None:
        return run_on_gpu(job.path, job.batches)
    prefix = job.scratch / job.path.name
    if not write_prefix(job.path, job.ops, prefix):
        return None
    runner = load(prefix)
    save_batches([runner.run(batch) for batch in job.batches], job.scratch / _REFERENCE)
    return run_on_gpu(prefix, job.batches)
