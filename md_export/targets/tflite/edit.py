"""Change what a .tflite file stores, for the gate's self-test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import flatbuffers  # type: ignore[import-untyped]  # ships no types
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from md_export.targets.editing import Constant
from md_export.targets.tflite.decode import decode
from md_export.targets.tflite.flatbuffer import DTYPES, IDENTIFIER, data_of, read_model

# A flatbuffer is written from its end; the builder grows by doubling.
_FIRST_BYTES: Final = 1 << 20
_NARROW: Final = (schema.TensorType.INT8, schema.TensorType.INT4)


@contextmanager
def edit(path: Path) -> Iterator[list[Constant]]:
    """Every constant in the order in which ops take it; what was written in place is saved in the end."""
    content = bytearray(path.read_bytes())
    model = schema.Model.GetRootAs(content, 0)
    yield [constant for index in range(model.SubgraphsLength()) for constant in _constants(model, content, index)]
    path.write_bytes(content)


def _constants(model: Any, content: bytearray, subgraph: int) -> Iterator[Constant]:
    graph = model.Subgraphs(subgraph)
    operators = [graph.Operators(index) for index in range(graph.OperatorsLength())]
    taken = dict.fromkeys(int(item) for operator in operators for item in operator.InputsAsNumpy() if item >= 0)
    for index in taken:
        tensor = graph.Tensors(index)
        raw = _bytes_of(model.Buffers(tensor.Buffer()), content)
        if not raw.size:
            continue
        name, dtype = f"{tensor.Name().decode()} #{index}", DTYPES.get(tensor.Type())
        quantization = tensor.Quantization()
        is_packed = dtype in (None, "int4")
        yield Constant(name, "packed" if is_packed else "weight", raw if is_packed else raw.view(dtype))
        if dtype in ("int8", "int4") and quantization is not None and quantization.ScaleLength():
            yield Constant(f"{name} scale", "scale", quantization.ScaleAsNumpy())


def _bytes_of(buffer: Any, content: bytearray) -> NDArray[np.uint8]:
    """A view; the quantizer keeps large constants behind the tables."""
    if buffer.Offset():
        return np.frombuffer(content, np.uint8, buffer.Size(), buffer.Offset())
    return buffer.DataAsNumpy() if buffer.DataLength() else np.empty(0, np.uint8)


def store_as_float(path: Path) -> bool:
    """Store each int8 or int4 weight as the float32 that it stands for, as a float file has it. False where none is."""
    model = read_model(path)
    tensors = [tensor for graph in model.subgraphs for tensor in graph.tensors]
    weights = [tensor for tensor in tensors if tensor.type in _NARROW and data_of(model, tensor).size]
    for buffer in model.buffers:
        buffer.data, buffer.offset, buffer.size = None if buffer.data is None else np.array(buffer.data), 0, 0
    # Equal weights share a buffer.
    for tensor, values in [(tensor, decode(model, tensor).values) for tensor in weights]:
        model.buffers[tensor.buffer].data = np.ascontiguousarray(values, np.float32).view(np.uint8).reshape(-1)
        tensor.type, tensor.quantization = schema.TensorType.FLOAT32, None
    builder = flatbuffers.Builder(_FIRST_BYTES)
    builder.Finish(model.Pack(builder), IDENTIFIER)
    path.write_bytes(builder.Output())
    return bool(weights)
