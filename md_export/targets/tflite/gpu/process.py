"""TFLite files on LiteRT's GPU engine, each time in a process of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from md_export.errors import MissingExtraError
from md_export.spec.tensors import Array, Arrays
from md_export.targets.execution import exchange
from md_export.worker.calling import run_worker


@dataclass(frozen=True)
class GpuExecution:
    """What LiteRT's GPU engine did.

    Attributes:
        outputs: one dict for each set of inputs; none where it failed.
        reference: XNNPACK's, where only the first ops were run.
        resident: every op ran on the GPU.
        compile_seconds, run_seconds: of one compilation and of all executions together.
        failure: why there are no outputs: the engine's error, a crash, or the time limit.
        timed_out: it was the time limit.
        log: what the engine wrote; read by :func:`md_export.targets.tflite.gpu.log.read_log`.
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
        MissingExtraError: there is no Vulkan driver. Every other failure is a result.
    """
    with exchange(batches, "reference") as files:
        ended = run_worker("execute_on_gpu", {**files.request, "path": str(path), "ops": ops}, limit_s)
        answer = ended.answer or {"message": ended.death}
        if answer.get("error") == MissingExtraError.__name__:
            raise MissingExtraError(answer["message"])
        return GpuExecution(
            outputs=files.read(),
            reference=files.read("reference"),
            resident=answer.get("resident", False),
            compile_seconds=answer.get("compile_seconds", 0.0),
            run_seconds=answer.get("run_seconds", 0.0),
            failure=answer.get("message"),
            timed_out=ended.timed_out,
            log=ended.log,
        )
