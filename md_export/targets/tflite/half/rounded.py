"""A .tflite file that computes with float16 values and float32 sums, executed by LiteRT on a CPU.

After every op a CAST to float16 and one back: what a GPU does that stores float16 and adds in float32. Additions in
float16 are not in it; those only :mod:`.bounds` speaks of.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import torch
from ai_edge_litert import schema_py_generated as schema

from md_export.spec.tensors import Array, Arrays
from md_export.targets.tflite.flatbuffer import data_of, operator_name, read_model, write_rewired
from md_export.targets.tflite.half.bounds import decibels
from md_export.targets.tflite.run import load

_FLOAT32: Final = schema.TensorType.FLOAT32
_FLOAT16: Final = schema.TensorType.FLOAT16
# What these give is rounded already: they only move values, or read a stored weight.
_EXACT: Final = frozenset({"RESHAPE", "TRANSPOSE", "SLICE", "PAD", "CONCATENATION", "DEQUANTIZE"})
# Of outputs that are not finite.
LOST_DB: Final = -999.0


def emulated_db(path: Path, batches: Sequence[Arrays]) -> float:
    """End to end: outputs in float32 over what float16 values with float32 sums make of them, in dB, the worst case.

    Raises:
        RuntimeFault: the file does not run on these inputs.
    """
    with TemporaryDirectory(prefix="md-export-") as scratch:
        rounded = Path(scratch) / path.name
        write_rounded(path, rounded)
        exact, half = load(path), load(rounded)
        return min(_snr_db(exact.run(batch), half.run(batch)) for batch in batches)


def _snr_db(wanted: Arrays, made: dict[str, Array]) -> float:
    worst = np.inf
    for name, value in wanted.items():
        if value.dtype.kind == "f":
            off = torch.from_numpy(made[name]).double() - torch.from_numpy(value).double()
            found = decibels(torch.from_numpy(value), off.square()) if bool(off.isfinite().all()) else LOST_DB
            worst = min(worst, found)
    return float(worst)


def write_rounded(source: Path, path: Path) -> None:
    """Write ``path``: ``source`` with every float32 value and constant rounded to float16, inputs and outputs included.

    Raises:
        RuntimeFault: ``source`` is no .tflite file.
    """
    model = read_model(source)
    _round_constants(model)
    graph, casts = model.subgraphs[0], _Casts(model)
    operators = [cast for index in graph.inputs for cast in casts.of(int(index))]
    for operator in graph.operators:
        operator.inputs = [casts.rounded.get(int(index), int(index)) for index in operator.inputs]
        operators.append(operator)
        if operator_name(model, operator) not in _EXACT:
            operators += [cast for index in operator.outputs for cast in casts.of(int(index))]
    graph.operators = operators
    graph.outputs = [casts.rounded.get(int(index), int(index)) for index in graph.outputs]
    for entry in model.signatureDefs[0].outputs:
        entry.tensorIndex = casts.rounded.get(entry.tensorIndex, entry.tensorIndex)
    write_rewired(model, path)


def _round_constants(model: Any) -> None:
    for tensor in model.subgraphs[0].tensors:
        stored = data_of(model, tensor)
        if stored.size and tensor.type == _FLOAT32:
            with np.errstate(over="ignore"):
                half = np.asarray(stored).view(np.float32).astype(np.float16).astype(np.float32)
            model.buffers[tensor.buffer].data = half.view(np.uint8)


class _Casts:
    """Pairs of CASTs; ``rounded`` leads from a tensor to what the second one gives."""

    def __init__(self, model: Any) -> None:
        code = schema.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.CAST
        code.version = 1
        model.operatorCodes.append(code)
        self._place = len(model.operatorCodes) - 1
        self._tensors = model.subgraphs[0].tensors
        self.rounded: dict[int, int] = {}

    def of(self, index: int) -> list[Any]:
        """The two ops that round a tensor; none for integers."""
        if self._tensors[index].type != _FLOAT32:
            return []
        half, back = self._like(index, _FLOAT16), self._like(index, _FLOAT32)
        self.rounded[index] = back
        return [self._cast(index, half), self._cast(half, back)]

    def _like(self, index: int, kind: int) -> int:
        tensor = copy.copy(self._tensors[index])
        tensor.type, tensor.buffer = kind, 0
        self._tensors.append(tensor)
        return len(self._tensors) - 1

    def _cast(self, source: int, made: int) -> Any:
        operator, options = schema.OperatorT(), schema.CastOptionsT()
        options.inDataType, options.outDataType = self._tensors[source].type, self._tensors[made].type
        operator.opcodeIndex, operator.inputs, operator.outputs = self._place, [source], [made]
        operator.builtinOptionsType, operator.builtinOptions = schema.BuiltinOptions.CastOptions, options
        return operator
