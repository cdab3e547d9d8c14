"""Run a file with float16 weights on the CPU, and check that its values are within the range of a GPU's float16.

The CPU computes in float32, where a value past 65504 is a large number; on a GPU it is infinite and the picture is
black.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from md_export.spec.tensors import Array, Arrays
from md_export.system.workspace import scratch_folder
from md_export.targets.tflite.flatbuffer import data_of, read_model
from md_export.targets.tflite.half.activations import NARROW, Recorder
from md_export.targets.tflite.run import TfliteRunner
from md_export.targets.tflite.run import load as load_plain

# Half a step above float16's largest number: from here on, rounding gives infinity.
_OVERFLOWS_AT: Final = 65520.0
# Number of recorded runs between two checks; in a sampler, the largest values are in the first steps, with the noise.
_MOST: Final = 16


class HalfWatch:
    """A :class:`WatchedRunner <md_export.spec.tensors.WatchedRunner>` of a file with float16 weights."""

    def __init__(self, path: Path, runner: TfliteRunner) -> None:
        self._path = path
        self._runner: TfliteRunner | None = runner
        self._pending: list[Arrays] = []
        self._lines: dict[str, None] = {}
        self.inputs, self.outputs = runner.inputs, runner.outputs

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """Execute once in float32; see :meth:`TfliteRunner.run`."""
        self._runner = self._runner or load_plain(self._path)
        outputs = self._runner.run(inputs)
        if len(self._pending) < _MOST:
            self._pending.append(inputs)
        return outputs

    def hazards(self) -> tuple[str, ...]:
        """Repeat the recorded runs with values rounded to float16; return a line for each operation that overflows.

        Raises:
            RuntimeFault: the file does not run on the inputs.
        """
        from md_export.targets.tflite.half.bounds import write_rounded  # imports torch, which a runtime does not need

        pending, self._pending = self._pending, []
        if pending:
            self._runner = None  # one model in memory at a time
            with scratch_folder() as scratch:
                rounded = scratch / self._path.name
                write_rounded(self._path, rounded)
                half = load_plain(rounded)
                lost = [batch for batch in pending if not _is_finite(half.run(batch))]
            self._lines |= dict.fromkeys(_origin(self._path, batch) for batch in lost[:1])
        return tuple(self._lines)


def load(path: Path, runtime: str | None = None) -> TfliteRunner | HalfWatch:
    """Open a file like :func:`md_export.targets.tflite.run.load`; watched if all weights are float16, by default."""
    runner = load_plain(path, runtime)
    return HalfWatch(path, runner) if runtime is None and _stores_halves(path) else runner


def _stores_halves(path: Path) -> bool:
    model = read_model(path)
    kinds = {tensor.type for tensor in model.subgraphs[0].tensors if data_of(model, tensor).size}
    return schema.TensorType.FLOAT16 in kinds and not kinds & NARROW


def _is_finite(outputs: Arrays) -> bool:
    return all(np.isfinite(value).all() for value in outputs.values() if value.dtype.kind == "f")


def _origin(path: Path, batch: Arrays) -> str:
    """Describe the first operation with values, in float32, beyond float16's range."""
    end = "Scale that module's weights down and the next module's up, or export with --fp32"
    for values in Recorder(path).run(batch):
        largest = float(np.abs(values.output).max()) if values.output.dtype.kind == "f" and values.output.size else 0.0
        if not largest < _OVERFLOWS_AT:
            where = f"module {values.op.module}, " if values.op.module else ""
            return (
                f"float16 overflow in {where}{values.op.kind} {values.op.name}: magnitudes up to {largest:.4g}, "
                f"float16 ends at 65504; a GPU's outputs are not finite. {end}"
            )
    return f"float16 overflow inside an operation: a GPU's outputs are not finite. {end}"
