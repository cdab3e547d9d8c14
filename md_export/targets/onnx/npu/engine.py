"""Execute a compiled graph on Qualcomm's simulator of the Hexagon NPU."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from md_export.errors import RuntimeFault, one_line
from md_export.spec.snapdragon import Soc
from md_export.spec.tensors import Array, Arrays
from md_export.targets.onnx.npu.session import npu_session
from md_export.targets.onnx.run import OnnxRunner
from md_export.targets.onnx.sessions import ORT_ERRORS


@dataclass(frozen=True)
class NpuRun:
    """Outputs for each set of inputs; seconds of loading, and of all executions, by the simulator."""

    outputs: list[dict[str, Array]]
    load_seconds: float
    run_seconds: float


def run_on_npu(context: Path, soc: Soc, batches: Sequence[Arrays]) -> NpuRun:
    """Run what :func:`md_export.targets.onnx.npu.context.compile_context` wrote, without any help of the CPU.

    Raises:
        RuntimeFault: the backend refuses the context or the inputs.
    """
    started = time.perf_counter()
    try:
        runner = OnnxRunner(npu_session(context, soc, fallback=False), context.name)
    except ORT_ERRORS as error:
        raise RuntimeFault(f"{context.name}: the NPU's backend does not load it: {one_line(error)}") from error
    loaded = time.perf_counter()
    outputs = [runner.run(batch) for batch in batches]
    return NpuRun(outputs, round(loaded - started, 2), round(time.perf_counter() - loaded, 2))
