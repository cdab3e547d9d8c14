"""What each node of a saved ONNX file computes and moves; read from the graph, nothing is run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import onnx

from md_export.errors import RuntimeFault, one_line
from md_export.targets.costs import Node, OpCost, Value, Work, costs_of, einsum_macs, multiplying, product_macs
from md_export.targets.onnx.clean import module_path
from md_export.targets.onnx.describe import MALFORMED, read_unfused, stored_bytes

_VIEWS: Final = ("Reshape", "Unsqueeze", "Squeeze", "Flatten", "Identity", "Shape", "Constant")
_MOVES: Final = ("Transpose", "DepthToSpace", "SpaceToDepth")
_PASSING: Final = ("QuantizeLinear", "DequantizeLinear")
_CONVOLUTIONS: Final = ("Conv", "ConvTranspose")
# What only gives a constant another form where it is given one.
_FORMS: Final = ("Cast", "Reshape", "Transpose", "Unsqueeze", "Identity")
# Of a node's inputs.
_Shapes = Sequence[tuple[int, ...]]


def costs(path: Path) -> tuple[OpCost, ...]:
    """One for each node.

    Raises:
        RuntimeFault: the file is no ONNX model, was fused by onnxruntime, or its shapes cannot be told.
    """
    model = read_unfused(path)
    try:
        values = _known(model.graph)
        if any(node.output[0] not in values for node in model.graph.node):
            inferred = onnx.shape_inference.infer_shapes(model)
            values = _known(inferred.graph)
        return costs_of([_node(node, values) for node in model.graph.node], values)
    except (*MALFORMED, onnx.shape_inference.InferenceError) as error:
        raise RuntimeFault(f"{path.name}: its shapes cannot be told: {one_line(error)}; export it again") from error


def _known(graph: onnx.GraphProto) -> dict[str, Value]:
    """Values whose shape is known: declared, or that of what quantizers, which declare nothing, were given."""
    values = dict(_declared(graph))
    for node in graph.node:
        if node.op_type in _PASSING and node.output[0] not in values and node.input[0] in values:
            # The zero point has the integer's type, the scale the real one's.
            to_integers = node.op_type == "QuantizeLinear" and len(node.input) > len("xs")
            typed = values[node.input[2 if to_integers else 1]] if len(node.input) > 1 else values[node.input[0]]
            values[node.output[0]] = Value(values[node.input[0]].shape, typed.dtype)
    return values


def _declared(graph: onnx.GraphProto) -> Iterator[tuple[str, Value]]:
    for info in (*graph.input, *graph.value_info, *graph.output):
        tensor = info.type.tensor_type
        shape = tuple(max(dimension.dim_value, 1) for dimension in tensor.shape.dim)
        yield info.name, Value(shape, _dtype(tensor.elem_type))
    for constant in graph.initializer:
        yield constant.name, Value(tuple(constant.dims), _dtype(constant.data_type), stored_bytes(constant))


def _dtype(number: int) -> str:
    """numpy's name; ONNX calls float32 plainly float."""
    name = str(onnx.TensorProto.DataType.Name(number)).lower()
    return "float32" if name == "float" else name


def _node(node: onnx.NodeProto, values: Mapping[str, Value]) -> Node:
    inputs, outputs = tuple(filter(None, node.input)), tuple(filter(None, node.output))
    given = [values[name] for name in inputs if name in values]
    shapes = [value.shape for value in given]
    constant = bool(given) and all(value.stored is not None for value in given)
    return Node(
        node.op_type,
        _work(node.op_type, shapes),
        inputs,
        outputs,
        _macs(node, shapes, values[outputs[0]].shape if outputs[0] in values else ()),
        module_path(node.name),
        passing=node.op_type in _PASSING or (constant and node.op_type in _FORMS),
        looks_up=node.op_type == "Gather",
    )


def _work(kind: str, shapes: _Shapes) -> Work:
    if kind in _CONVOLUTIONS:
        return multiplying(math.prod(shapes[1][2:]))
    if kind in _MACS or kind == "Einsum":
        return "matrix product"
    return "view" if kind in _VIEWS else "layout move" if kind in _MOVES else "other"


def _macs(node: onnx.NodeProto, shapes: _Shapes, out: tuple[int, ...]) -> int:
    if node.op_type == "Einsum":
        return einsum_macs(_attributes(node)["equation"].decode(), shapes)
    if node.op_type == "MatMulNBits":
        return math.prod(out) * int(_attributes(node)["K"])
    return _MACS[node.op_type](shapes, out) if node.op_type in _MACS else 0


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


_MACS: Final[Mapping[str, Callable[[_Shapes, tuple[int, ...]], int]]] = {
    # Weights [out, in of a group, …], and [in, out of a group, …].
    "Conv": lambda shapes, out: math.prod(out) * math.prod(shapes[1][1:]),
    "ConvTranspose": lambda shapes, _: math.prod(shapes[0]) * math.prod(shapes[1][1:]),
    "Gemm": lambda shapes, out: product_macs(shapes[0], out),
    "MatMul": lambda shapes, out: product_macs(shapes[0], out),
    "MatMulNBits": lambda _shapes, _out: 0,
}
