"""Contents of a saved ONNX file: operators with their costs, stored bytes by type, weights that stayed float."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from md_export.errors import RuntimeFault, raised_as
from md_export.targets.contract import Description, notes_among
from md_export.targets.onnx.clean import module_path, qualified
from md_export.targets.onnx.save import ORT_SUFFIX, as_onnx
from md_export.targets.onnx.wire import MalformedFileError, read_without_weights
from md_export.targets.operations import (
    ExplorerGraph,
    Node,
    OpCost,
    Value,
    Work,
    costs_of,
    einsum_macs,
    multiplying,
    product_macs,
)

# Position of the weight among an operator's inputs.
WEIGHT_INPUT: Final = {"Conv": 1, "Gemm": 1, "MatMul": 1, "Gather": 0}
# Errors of onnx for malformed constants.
MALFORMED: Final = (onnx.checker.ValidationError, OSError, ValueError, KeyError, IndexError, TypeError)
UNSHAPED: Final = (*MALFORMED, onnx.shape_inference.InferenceError)
# Operators between a stored weight and its reader.
_DECODING: Final = ("DequantizeLinear", "Cast", "Reshape")
_VIEWS: Final = ("Reshape", "Unsqueeze", "Squeeze", "Flatten", "Identity", "Shape", "Constant")
_MOVES: Final = ("Transpose", "DepthToSpace", "SpaceToDepth")
_PASSING: Final = ("QuantizeLinear", "DequantizeLinear")
_CONVOLUTIONS: Final = ("Conv", "ConvTranspose")
# Operators that only change the form of a constant input.
_FORMS: Final = ("Cast", "Reshape", "Transpose", "Unsqueeze", "Identity")
# Shapes of a node's inputs.
_Shapes = Sequence[tuple[int, ...]]
_MACS: Final[Mapping[str, Callable[[_Shapes, tuple[int, ...]], int]]] = {
    # Weights are [out, in of a group, …], and [in, out of a group, …] for a transposed convolution.
    "Conv": lambda shapes, out: math.prod(out) * math.prod(shapes[1][1:]),
    "ConvTranspose": lambda shapes, _: math.prod(shapes[0]) * math.prod(shapes[1][1:]),
    "Gemm": lambda shapes, out: product_macs(shapes[0], out),
    "MatMul": lambda shapes, out: product_macs(shapes[0], out),
    "MatMulNBits": lambda _shapes, _out: 0,
}


def describe(path: Path) -> Description:
    """Read a saved graph without running it.

    Weights are the constants of Conv, Gemm, MatMul and Gather, each under its node's name. QuantizeLinear would
    convert a constant NaN to a number, so the constants themselves are checked for NaN.

    Raises:
        RuntimeFault: the file is not an ONNX model, or its weights are not beside it.
    """
    model = read_graph(path)
    with raised_as(RuntimeFault, f"{path.name}: its weights cannot be read", MALFORMED):
        return _description(model, path.parent)


def _description(model: onnx.ModelProto, folder: Path) -> Description:
    graph = model.graph
    weights = _weight_dtypes(graph)
    return Description(
        stored=_bytes_by_dtype(graph),
        ops=dict(sorted(Counter(qualified(node.domain, node.op_type) for node in graph.node).items())),
        float_weights=tuple(name for name, dtype in weights.items() if dtype.startswith("float")),
        int8_weights=sum(dtype == "int8" for dtype in weights.values()),
        not_finite=tuple(tensor.name for tensor in graph.initializer if not _finite(tensor, folder)),
        notes=notes_among({pair.key: pair.value for pair in model.metadata_props}),
    )


def _weight_dtypes(graph: onnx.GraphProto) -> dict[str, str]:
    # A single column holds the row scales of an int8 embedding table.
    dtypes = {tensor.name: dtype_of(tensor) for tensor in graph.initializer if list(tensor.dims[1:]) != [1]}
    for node in graph.node:
        if node.op_type in _DECODING and node.input[0] in dtypes:
            dtypes[node.output[0]] = dtypes[node.input[0]]
    weights = {node.name: node.input[WEIGHT_INPUT[node.op_type]] for node in graph.node if node.op_type in WEIGHT_INPUT}
    return {name: dtypes[weight] for name, weight in weights.items() if weight in dtypes}


def read_graph(path: Path) -> onnx.ModelProto:
    """Parse a file without reading its weights; the weights of an ``.ort`` file are read.

    Raises:
        RuntimeFault: the file is not an ONNX model.
    """
    if path.suffix == ORT_SUFFIX:
        return as_onnx(path)
    with raised_as(RuntimeFault, f"{path.name} is not an ONNX model", (DecodeError, MalformedFileError, OSError)):
        model = read_without_weights(path)
    if not any(item.version for item in model.opset_import if not item.domain):
        raise RuntimeFault(f"{path.name} is not an ONNX model: it has no opset")
    return model


def read_unfused(path: Path) -> onnx.ModelProto:
    """Parse a file as :func:`read_graph` does, and refuse one without the checkpoint's modules and tensors.

    Raises:
        RuntimeFault: see :func:`read_graph`; also if onnxruntime has fused the graph.
    """
    model = read_graph(path)
    if "form" in notes_among({pair.key: pair.value for pair in model.metadata_props}):
        raise RuntimeFault(
            f"{path.name} was fused by onnxruntime: its operators and constants are no longer the checkpoint's modules "
            "and tensors. Export the same recipe without --ort or --cpu-fused and inspect that one; verify judges both"
        )
    return model


def _finite(tensor: onnx.TensorProto, folder: Path) -> bool:
    if not dtype_of(tensor).startswith("float"):
        return True
    return bool(np.isfinite(onnx.numpy_helper.to_array(tensor, str(folder))).all())


def dtype_of(tensor: onnx.TensorProto) -> str:
    """Return the name of a constant's type in numpy or ml_dtypes."""
    return str(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).name)


def _bytes_by_dtype(graph: onnx.GraphProto) -> dict[str, int]:
    totals: Counter[str] = Counter()
    for tensor in graph.initializer:
        totals[dtype_of(tensor)] += stored_bytes(tensor)
    return dict(sorted(totals.items()))


def stored_bytes(tensor: onnx.TensorProto) -> int:
    """Return the bytes of a constant's values; two of int4 are one byte."""
    return int(-(-prod(tensor.dims) * ir.DataType(tensor.data_type).bitwidth // 8))


def costs(path: Path) -> tuple[OpCost, ...]:
    """Return the cost of each node.

    Raises:
        RuntimeFault: the file is not an ONNX model, was fused by onnxruntime, or its shapes cannot be told.
    """
    model = read_unfused(path)
    values = _values(model, path.name)
    with raised_as(RuntimeFault, f"{path.name}: its shapes cannot be inferred", UNSHAPED, then="; export it again"):
        return costs_of([_node(node, values) for node in model.graph.node], values)


def explorer_graph(path: Path) -> ExplorerGraph:
    """Return the graph with the ids of Model Explorer's adapter for .onnx files: the names of the nodes.

    Source: ``main.py`` of justinchuby/model-explorer-onnx (``create_node``, ``create_graph``).

    Raises:
        RuntimeFault: the file is not an ONNX model, was fused by onnxruntime, or its shapes cannot be told.
    """
    model = read_unfused(path)
    names = tuple(node.name for node in model.graph.node)
    return ExplorerGraph(model.graph.name, names, _values(model, path.name))


def _values(model: onnx.ModelProto, file: str) -> dict[str, Value]:
    """Return every value with a declared or inferred shape."""
    with raised_as(RuntimeFault, f"{file}: its shapes cannot be inferred", UNSHAPED, then="; export it again"):
        values = _known(model.graph)
        if all(node.output[0] in values for node in model.graph.node):
            return values
        return _known(onnx.shape_inference.infer_shapes(model).graph)


def _known(graph: onnx.GraphProto) -> dict[str, Value]:
    """Return the values with a declared shape, and outputs of quantizers with the shape of their inputs."""
    values = dict(_declared(graph))
    for node in graph.node:
        if node.op_type in _PASSING and node.output[0] not in values and node.input[0] in values:
            # The zero point has the integers' type, the scale the floats' type.
            to_integers = node.op_type == "QuantizeLinear" and len(node.input) > len("xs")
            typed = values[node.input[2 if to_integers else 1]] if len(node.input) > 1 else values[node.input[0]]
            values[node.output[0]] = Value(node.output[0], values[node.input[0]].shape, typed.dtype)
    return values


def _declared(graph: onnx.GraphProto) -> Iterator[tuple[str, Value]]:
    for info in (*graph.input, *graph.value_info, *graph.output):
        tensor = info.type.tensor_type
        shape = tuple(max(dimension.dim_value, 1) for dimension in tensor.shape.dim)
        yield info.name, Value(info.name, shape, _dtype(tensor.elem_type))
    for constant in graph.initializer:
        dtype, stored = _dtype(constant.data_type), stored_bytes(constant)
        yield constant.name, Value(constant.name, tuple(constant.dims), dtype, stored)


def _dtype(number: int) -> str:
    """Return numpy's name of a type; ONNX calls float32 float."""
    name = str(onnx.TensorProto.DataType.Name(number)).lower()
    return "float32" if name == "float" else name


def _node(node: onnx.NodeProto, values: Mapping[str, Value]) -> Node:
    inputs, outputs = tuple(filter(None, node.input)), tuple(filter(None, node.output))
    given = [values[name] for name in inputs if name in values]
    shapes = [value.sizes for value in given]
    constant = bool(given) and all(value.stored is not None for value in given)
    return Node(
        node.op_type,
        _work(node.op_type, shapes),
        inputs,
        outputs,
        _macs(node, shapes, values[outputs[0]].sizes if outputs[0] in values else ()),
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
        return einsum_macs(_attribute(node, "equation").decode(), shapes)
    if node.op_type == "MatMulNBits":
        return math.prod(out) * int(_attribute(node, "K"))
    return _MACS[node.op_type](shapes, out) if node.op_type in _MACS else 0


def _attribute(node: onnx.NodeProto, name: str) -> Any:
    return onnx.helper.get_node_attr_value(node, name)
