"""Stored weights as the numbers that they stand for, which is how the GPU engine computes with them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from md_export.targets.tflite.decode import decode
from md_export.targets.tflite.flatbuffer import WEIGHTED, operator_name, read_model
from md_export.targets.tflite.rewire import write_rewired

_NARROW: Final = (schema.TensorType.INT8, schema.TensorType.INT4)


def write_float_weights(source: Path, path: Path) -> bool:
    """Write ``path``: ``source`` with float32 weights where float values meet integer ones.

    On the CPU such an op quantizes its values too; the GPU engine does not.

    Returns:
        whether there is such an op; else no file is written.

    Raises:
        RuntimeFault: ``source`` is no .tflite file.
    """
    model = read_model(source)
    weights = {int(index): model.subgraphs[0].tensors[index] for index in _mixed(model)}
    for tensor in weights.values():
        values = np.ascontiguousarray(decode(model, tensor).values, np.float32)
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
        is_float = graph.tensors[operator.outputs[0]].type == schema.TensorType.FLOAT32
        if is_float and graph.tensors[weight].type in _NARROW:
            yield weight
