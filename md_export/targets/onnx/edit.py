"""Change what an ONNX file stores, for the gate's self-test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from onnx import numpy_helper

from md_export.targets.editing import Constant
from md_export.targets.onnx.decode import dequantized
from md_export.targets.onnx.describe import read_unfused

_NARROW: Final = (onnx.TensorProto.INT8, onnx.TensorProto.INT4)


@contextmanager
def edit(path: Path) -> Iterator[list[Constant]]:
    """Every constant in the order in which nodes take it; what was written in place is saved in the end."""
    read_unfused(path)
    model = onnx.load(path)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    scales = {node.input[1] for node in model.graph.node if _dequantizes(node, tensors)}
    names = dict.fromkeys(name for node in model.graph.node for name in node.input if name in tensors)
    constants = [_constant(tensors[name], name in scales) for name in names]
    yield constants
    for constant in constants:
        _write(constant, tensors[constant.name])
    onnx.save(model, path)


def _constant(tensor: onnx.TensorProto, is_scale: bool) -> Constant:
    if tensor.data_type == onnx.TensorProto.INT4:
        return Constant(tensor.name, "packed", np.frombuffer(bytearray(tensor.raw_data), np.uint8))
    return Constant(tensor.name, "scale" if is_scale else "weight", np.array(numpy_helper.to_array(tensor)))


def _write(constant: Constant, tensor: onnx.TensorProto) -> None:
    if constant.role == "packed":
        tensor.raw_data = constant.values.tobytes()
    else:
        tensor.CopyFrom(numpy_helper.from_array(constant.values, constant.name))


def store_as_float(path: Path) -> bool:
    """Store each integer weight as the float that it stands for; the graph computes the same. False where none is."""
    read_unfused(path)
    model = onnx.load(path)
    graph, tensors = model.graph, {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = [node for node in graph.node if _dequantizes(node, tensors)]
    for node in nodes:
        values, _ = dequantized(node, lambda name: numpy_helper.to_array(tensors[name]))
        computed = onnx.helper.tensor_dtype_to_np_dtype(tensors[node.input[1]].data_type)
        graph.initializer.append(numpy_helper.from_array(values.astype(computed), node.output[0]))
        graph.node.remove(node)
    for name in {node.input[0] for node in nodes}:
        graph.initializer.remove(tensors[name])
    onnx.save(model, path)
    return bool(nodes)


def _dequantizes(node: onnx.NodeProto, tensors: dict[str, onnx.TensorProto]) -> bool:
    """Whether it turns a stored weight into float; biases are int32."""
    return (
        node.op_type == "DequantizeLinear" and node.input[0] in tensors and tensors[node.input[0]].data_type in _NARROW
    )
