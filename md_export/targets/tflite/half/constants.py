"""Stored weights as the numbers that they stand for, which is how the GPU engine computes with them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from md_export.errors import RuntimeFault
from md_export.targets.tflite.flatbuffer import DTYPES, WEIGHTED, data_of, operator_name, read_model, shape_of
from md_export.targets.tflite.rewire import write_rewired
from md_export.tensors import Array


def decoded(model: Any, tensor: Any) -> Array:
    """A constant; float32 where it is stored in float16, or in integers with a scale.

    Raises:
        RuntimeFault: it is stored in a type that is not read here.
    """
    stored = DTYPES.get(tensor.type)
    if stored is None:
        raise RuntimeFault(f"{tensor.name.decode()}: stored in a type that is not read here; export it in another one")
    plain: Array = data_of(model, tensor).view(stored).reshape(shape_of(tensor))
    scheme = tensor.quantization
    if scheme is None or scheme.scale is None or not len(scheme.scale):
        return plain.astype(np.float32) if stored == "float16" else plain
    shape = [1] * plain.ndim
    if len(scheme.scale) > 1:
        shape[int(scheme.quantizedDimension)] = -1
    scale, zero = (np.reshape(part, shape).astype(np.float32) for part in (scheme.scale, scheme.zeroPoint))
    real: Array = (plain.astype(np.float32) - zero) * scale
    return real


def write_float_weights(source: Path, path: Path) -> bool:
    """Write ``path``: ``source`` with float32 weights where float values meet int8 ones.

    On the CPU such an op quantizes its values too; the GPU engine does not.

    Returns:
        whether there is such an op; else no file is written.

    Raises:
        RuntimeFault: ``source`` is no .tflite file.
    """
    model = read_model(source)
    weights = {int(index): model.subgraphs[0].tensors[index] for index in _mixed(model)}
    for tensor in weights.values():
        values = np.ascontiguousarray(decoded(model, tensor), np.float32)
        # A buffer that two tensors share has one type in all of them.
        model.buffers.append(schema.BufferT())
        model.buffers[-1].data = values.view(np.uint8).reshape(-1)
        tensor.buffer, tensor.type, tensor.quantization = len(model.buffers) - 1, schema.TensorType.FLOAT32, None
    if weights:
        write_rewired(model, path)
    return bool(weights)


def _mixed(model: Any) -> Iterator[int]:
    graph = model.subgraphs[0]
    for operator in graph.operators:
        name = operator_name(model, operator)
        if name not in WEIGHTED:
            continue
        weight = int(operator.inputs[WEIGHTED[name]])
        kinds = (graph.tensors[weight].type, graph.tensors[operator.outputs[0]].type)
        if kinds == (schema.TensorType.INT8, schema.TensorType.FLOAT32):
            yield weight
