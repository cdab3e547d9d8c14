"""Inputs and outputs of every op of a .tflite graph on real inputs, computed by XNNPACK in float32."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from md_export.errors import RuntimeFault
from md_export.spec.tensors import Array, Arrays
from md_export.targets.observers import portions
from md_export.targets.operations import Op
from md_export.targets.tflite import flatbuffer
from md_export.targets.tflite.describe import ops_of
from md_export.targets.tflite.run import values

# Limit of recorded bytes per execution; a graph with more values is executed several times.
_KEPT: Final = 2 * 2**30
NARROW: Final = frozenset({schema.TensorType.INT8, schema.TensorType.INT4})


@dataclass(frozen=True)
class OpValues:
    """Values of one op in one run.

    Attributes:
        op: names, shapes and torch module of the op.
        options: the format's parameters for that kind of op: stride, padding, ….
        inputs: input values including constants; None for an absent optional input.
        output: values of its first output. Integers with a scale are decoded to floats.
    """

    op: Op
    options: Any
    inputs: tuple[Array | None, ...]
    output: Array

    def read(self, place: int) -> Array:
        """Return an input that must exist.

        Raises:
            RuntimeFault: the op lacks the input.
        """
        found = self.inputs[place] if place < len(self.inputs) else None
        if found is None:
            raise RuntimeFault(f"{self.op.kind} {self.op.name} lacks input {place}; export it again")
        return found


class Recorder:
    """A file with ops that can be recorded."""

    def __init__(self, path: Path) -> None:
        """Open the file; raises RuntimeFault if it is not a .tflite file."""
        self._path, self._model = path, flatbuffer.read_model(path)
        self._graph = self._model.subgraphs[0]
        self._ops = ops_of(self._model)
        self._constants = {index: tensor for index, tensor in enumerate(self._graph.tensors) if self._stored(tensor)}
        for operator in self._graph.operators:
            # A weight in float16 or integers that is decoded to float32 before its use.
            source = int(operator.inputs[0])
            if flatbuffer.operator_name(self._model, operator) == "DEQUANTIZE" and source in self._constants:
                self._constants[int(operator.outputs[0])] = self._constants[source]

    def run(self, inputs: Arrays) -> Iterator[OpValues]:
        """Execute once, and yield each op with its inputs and outputs, in order.

        Raises:
            RuntimeFault: the inputs do not suit the file, or an op failed.
        """
        pairs = zip(self._ops, self._graph.operators, strict=True)
        # Sequences of ops with values that fit into the limit.
        for part in portions(((pair, self._bytes(pair[1])) for pair in pairs), _KEPT):
            wanted = sorted({index for _, operator in part for index in self._computed(operator)})
            found = values(self._path, inputs, [str(index) for index in wanted])
            for op, operator in part:
                read = tuple(self._value(int(index), found) for index in operator.inputs)
                output = self._value(int(operator.outputs[0]), found)
                if output is not None:
                    yield OpValues(op, operator.builtinOptions, read, output)

    def _stored(self, tensor: Any) -> bool:
        return bool(flatbuffer.data_of(self._model, tensor).size)

    def _computed(self, operator: Any) -> set[int]:
        used = {int(index) for index in (*operator.inputs, operator.outputs[0])}
        return used - set(self._constants) - {-1}

    def _bytes(self, operator: Any) -> int:
        return sum(4 * prod(flatbuffer.shape_of(self._graph.tensors[index])) for index in self._computed(operator))

    def _value(self, index: int, found: dict[str, Array]) -> Array | None:
        if index < 0:
            return None
        return (
            flatbuffer.decode(self._model, self._constants[index]).values
            if index in self._constants
            else found[str(index)]
        )


def write_float_weights(source: Path, path: Path) -> bool:
    """Write ``path``: ``source`` with float32 weights in ops with float data and integer weights.

    On the CPU, such an op also quantizes its data; the GPU engine does not.

    Returns:
        Whether there is such an op; if not, no file is written.

    Raises:
        RuntimeFault: ``source`` is not a .tflite file.
    """
    model = flatbuffer.read_model(source)
    weights = {int(index): model.subgraphs[0].tensors[index] for index in _mixed(model)}
    for tensor in weights.values():
        values = np.ascontiguousarray(flatbuffer.decode(model, tensor).values, np.float32)
        # Tensors that share a buffer have one type.
        model.buffers.append(schema.BufferT())
        model.buffers[-1].data = values.view(np.uint8).reshape(-1)
        tensor.buffer, tensor.type, tensor.quantization = len(model.buffers) - 1, schema.TensorType.FLOAT32, None
    if weights:
        flatbuffer.write_rewired(model, path)
    return bool(weights)


def _mixed(model: Any) -> Iterator[int]:
    graph = model.subgraphs[0]
    for operator in graph.operators:
        name = flatbuffer.operator_name(model, operator)
        if name not in flatbuffer.WEIGHTED:
            continue
        weight = int(operator.inputs[flatbuffer.WEIGHTED[name]])
        is_float = graph.tensors[operator.outputs[0]].type == schema.TensorType.FLOAT32
        if is_float and graph.tensors[weight].type in NARROW:
            yield weight
