"""Files of one op each, written by hand: no converter, so that any op with any numbers takes milliseconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from md_export.spec.tensors import Array
from md_export.targets.tflite.flatbuffer import DTYPES, IDENTIFIER
from md_export.targets.tflite.half.activations import OpValues, Recorder

MODULE: Final = "module"
_TYPES: Final = {name: number for number, name in DTYPES.items()}
# The table of an op's options, where it has one.
_OPTIONS: Final = {
    "CONV_2D": "Conv2DOptions",
    "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions",
    "TRANSPOSE_CONV": "TransposeConvOptions",
    "FULLY_CONNECTED": "FullyConnectedOptions",
    "BATCH_MATMUL": "BatchMatMulOptions",
    "MEAN": "ReducerOptions",
    "SUM": "ReducerOptions",
    "SOFTMAX": "SoftmaxOptions",
    "ADD": "AddOptions",
    "SUB": "SubOptions",
    "MUL": "MulOptions",
}


SAME, VALID = schema.Padding.SAME, schema.Padding.VALID


@dataclass(frozen=True)
class OneOp:
    """An op, its operands in order and the shape of what it gives; those named in ``computed`` are inputs."""

    kind: str
    operands: Sequence[Array | None]
    shape: tuple[int, ...]
    computed: tuple[int, ...] = (0,)
    options: Mapping[str, object] = field(default_factory=dict)

    @property
    def inputs(self) -> dict[str, Array]:
        found = {f"x{place}": self.operands[place] for place in self.computed}
        return {name: value for name, value in found.items() if value is not None}

    def write(self, path: Path) -> Path:
        model, graph = schema.ModelT(), schema.SubGraphT()
        model.version, model.subgraphs, model.buffers = 3, [graph], [schema.BufferT()]
        code, operator = schema.OperatorCodeT(), schema.OperatorT()
        code.builtinCode = getattr(schema.BuiltinOperator, self.kind)
        code.deprecatedBuiltinCode, code.version = min(code.builtinCode, 127), 1
        model.operatorCodes, graph.operators = [code], [operator]
        graph.tensors = []
        operator.inputs = [self._tensor(model, place) for place in range(len(self.operands))]
        graph.tensors.append(tensor_of(f"{MODULE};{len(self.operands)}", self.shape, "float32", 0))
        operator.outputs = graph.outputs = [len(graph.tensors) - 1]
        graph.inputs = [operator.inputs[place] for place in self.computed]
        give_options(operator, self.kind, self.options)
        model.signatureDefs = [_signature(graph, self.computed)]
        builder = flatbuffers.Builder()
        builder.Finish(model.Pack(builder), file_identifier=IDENTIFIER)
        path.write_bytes(builder.Output())
        return path

    def values(self, folder: Path) -> OpValues:
        """What the op reads and gives when the file is executed."""
        (found,) = Recorder(self.write(folder / f"{self.kind}.tflite")).run(self.inputs)
        return found

    def _tensor(self, model: Any, place: int) -> int:
        operand, graph = self.operands[place], model.subgraphs[0]
        if operand is None:
            return -1
        buffer = 0
        if place not in self.computed:
            stored = schema.BufferT()
            stored.data = np.frombuffer(operand.tobytes(), np.uint8)
            model.buffers.append(stored)
            buffer = len(model.buffers) - 1
        graph.tensors.append(tensor_of(f"{MODULE};{place}", operand.shape, operand.dtype.name, buffer))
        return len(graph.tensors) - 1


def give_options(operator: Any, kind: str, options: Mapping[str, object]) -> None:
    if kind == "STABLEHLO_COMPOSITE":
        operator.builtinOptions2Type = schema.BuiltinOptions2.StableHLOCompositeOptions
        operator.builtinOptions2 = schema.StableHLOCompositeOptionsT(**options)
    table = _OPTIONS.get(kind)
    if table:
        operator.builtinOptionsType = getattr(schema.BuiltinOptions, table)
        operator.builtinOptions = getattr(schema, f"{table}T")()
        for name, value in options.items():
            setattr(operator.builtinOptions, name, value)


def tensor_of(name: str, shape: tuple[int, ...], dtype: str, buffer: int) -> Any:
    tensor = schema.TensorT()
    tensor.name, tensor.shape, tensor.type, tensor.buffer = name, list(shape), _TYPES[dtype], buffer
    return tensor


def _signature(graph: Any, computed: tuple[int, ...]) -> Any:
    signature = schema.SignatureDefT()
    signature.signatureKey = "main"
    signature.inputs = [_entry(f"x{place}", index) for place, index in zip(computed, graph.inputs, strict=True)]
    signature.outputs = [_entry("out", graph.outputs[0])]
    return signature


def _entry(name: str, tensor: int) -> Any:
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = name, tensor
    return entry


def noise(*shape: int, seed: int = 0, scale: float = 1.0) -> NDArray[np.float32]:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def conv(x: Array, weight: Array, shape: tuple[int, ...], stride: int = 1, padding: int = SAME) -> OneOp:
    options = {"padding": padding, "strideH": stride, "strideW": stride, "dilationHFactor": 1, "dilationWFactor": 1}
    return OneOp("CONV_2D", (x, weight, noise(weight.shape[0], seed=9)), shape, options=options)
