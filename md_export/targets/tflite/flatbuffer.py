"""Read a .tflite file's tables, without running it and without loading its weights."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from md_export.errors import RuntimeFault
from md_export.targets.tflite.names import module_of

IDENTIFIER: Final = b"TFL3"
# What flatbuffers' Python reader raises on offsets and lengths that lead out of the file.
MALFORMED: Final = (struct.error, ValueError, IndexError, KeyError, TypeError, AttributeError)

# Names of numpy's types, and ``int4``, two to a byte, which numpy has not.
DTYPES: Final = {
    schema.TensorType.FLOAT32: "float32",
    schema.TensorType.FLOAT16: "float16",
    schema.TensorType.INT32: "int32",
    schema.TensorType.INT64: "int64",
    schema.TensorType.INT8: "int8",
    schema.TensorType.INT4: "int4",
    schema.TensorType.UINT8: "uint8",
    schema.TensorType.INT16: "int16",
    schema.TensorType.BOOL: "bool",
}
_OPERATORS: Final[dict[int, str]] = {
    value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)
}
# Ops with a weight, and the operand that holds it.
WEIGHTED: Final = {
    "FULLY_CONNECTED": 1,
    "CONV_2D": 1,
    "DEPTHWISE_CONV_2D": 1,
    "TRANSPOSE_CONV": 1,
    "EMBEDDING_LOOKUP": 1,
}
# The operand that holds the values, where it is not the first.
_VALUES: Final = {"TRANSPOSE_CONV": 2}


@dataclass(frozen=True)
class WeightedOp:
    """One op with a stored weight.

    Attributes:
        operator: ``CONV_2D``, ….
        module: path of the torch module that it computes.
        output: name of its output tensor.
        dtype: in which the weight is stored, a name of :data:`DTYPES`.
        takes: that of the values which it is applied to.
    """

    operator: str
    module: str
    output: str
    dtype: str
    takes: str


def read_model(path: Path) -> Any:
    """Parse ``path``; weights stay in the file (memory-mapped), whatever their size.

    Returns:
        the schema's ``ModelT``, every constant's bytes in its buffer's ``data``, also those that the
        quantizer keeps behind the tables.

    Raises:
        RuntimeFault: the file is missing, no .tflite file, truncated or corrupted.
    """
    try:
        with path.open("rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise RuntimeFault(f"{path.name}: cannot be read as a .tflite file: {error}") from error
    if content[4:8] != IDENTIFIER:
        raise RuntimeFault(f"{path.name}: no .tflite file (its identifier is not {IDENTIFIER.decode()})")
    try:
        model = schema.ModelT.InitFromPackedBuf(content, 0)
        for buffer in model.buffers:
            if buffer.offset:
                buffer.data = np.frombuffer(content, np.uint8, buffer.size, buffer.offset)
    except MALFORMED as error:
        raise RuntimeFault(f"{path.name}: truncated or corrupted: {error}; export it again") from error
    return model


def operator_name(model: Any, operator: Any) -> str:
    """``CONV_2D``, …; ops above 127 are kept in the newer of the two code fields."""
    code = model.operatorCodes[operator.opcodeIndex]
    return _OPERATORS[max(code.builtinCode, code.deprecatedBuiltinCode)]


def shape_of(tensor: Any) -> tuple[int, ...]:
    """Static shape; ``()`` for a scalar, which the schema stores as nothing."""
    return () if tensor.shape is None else tuple(int(size) for size in tensor.shape)


def data_of(model: Any, tensor: Any) -> NDArray[np.uint8]:
    """Raw bytes of a constant; empty for a tensor that is computed."""
    data = model.buffers[tensor.buffer].data
    return np.empty(0, np.uint8) if data is None else np.asarray(data, np.uint8)


def weighted_ops(model: Any) -> list[WeightedOp]:
    """Ops whose weight is a constant, seen through the DEQUANTIZE of a float16 or weight-only integer one."""
    return [op for graph in model.subgraphs for op in _weighted(model, graph)]


def _weighted(model: Any, graph: Any) -> Iterator[WeightedOp]:
    named = [(operator_name(model, operator), operator) for operator in graph.operators]
    source = {operator.outputs[0]: operator.inputs[0] for name, operator in named if name == "DEQUANTIZE"}
    for name, operator in named:
        if name not in WEIGHTED:
            continue
        index = operator.inputs[WEIGHTED[name]]
        weight = graph.tensors[source.get(index, index)]
        output = graph.tensors[operator.outputs[0]].name.decode()
        if data_of(model, weight).size:
            module = module_of(weight.name.decode(), output)
            value = graph.tensors[operator.inputs[_VALUES.get(name, 0)]]
            yield WeightedOp(name, module, output, DTYPES.get(weight.type, "other"), DTYPES.get(value.type, "other"))
