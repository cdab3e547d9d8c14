"""Change what an ONNX file stores, for the gate's self-test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from md_export.targets.editing import Constant


@contextmanager
def edit(path: Path) -> Iterator[list[Constant]]:
    """Every constant in the order in which nodes take it; what was written in place is saved in the end."""
    model = onnx.load(path)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    scales = {node.input[1] for node in model.graph.node if _dequantizes(node, tensors)}
    names = dict.fromkeys(name for node in model.graph.node for name in node.input if name in tensors)
    values = {name: np.array(numpy_helper.to_array(tensors[name])) for name in names}
    yield [Constant(name, "scale" if name in scales else "weight", value) for name, value in values.items()]
    for name, value in values.items():
        tensors[name].CopyFrom(numpy_helper.from_array(value, name))
    onnx.save(model, path)


def store_as_float(path: Path) -> bool:
    """Store each int8 weight as the float32 that it stands for; the graph computes the same. False where none is."""
    model = onnx.load(path)
    graph, tensors = model.graph, {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = [node for node in graph.node if _dequantizes(node, tensors)]
    for node in nodes:
        values = _dequantized(node, tensors)
        graph.initializer.append(numpy_helper.from_array(values, node.output[0]))
        graph.node.remove(node)
    for name in {node.input[0] for node in nodes}:
        graph.initializer.remove(tensors[name])
    onnx.save(model, path)
    return bool(nodes)


def _dequantized(node: onnx.NodeProto, tensors: dict[str, onnx.TensorProto]) -> NDArray[np.float32]:
    quantized, scale, zero = (numpy_helper.to_array(tensors[name]).astype(np.float32) for name in node.input)
    axis = next((item.i for item in node.attribute if item.name == "axis"), 1)
    along = [-1 if index == axis % quantized.ndim else 1 for index in range(quantized.ndim)]
    if scale.size == 1:
        along = [1]
    values: NDArray[np.float32] = (quantized - zero.reshape(along)) * scale.reshape(along)
    return values


def _dequantizes(node: onnx.NodeProto, tensors: dict[str, onnx.TensorProto]) -> bool:
    """Whether it turns a stored int8 weight into float; biases are int32."""
    return (
        node.op_type == "DequantizeLinear"
        and node.input[0] in tensors
        and tensors[node.input[0]].data_type == onnx.TensorProto.INT8
    )
