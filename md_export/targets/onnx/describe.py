"""What an ONNX file really holds: operators, stored bytes by type, and where weights stayed float."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, Final

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from md_export.errors import RuntimeFault

# Which input of an operator is its weight.
WEIGHT_INPUT: Final = {"Conv": 1, "Gemm": 1, "MatMul": 1, "Gather": 0}


def describe(path: Path) -> dict[str, Any]:
    """Read a saved graph without running it.

    Returns:
        ``opset`` int; ``operators`` op type → count; ``weight_bytes`` numpy dtype name → stored bytes over
        all initializers; ``float_nodes`` names of Conv, Gemm, MatMul and Gather nodes whose constant weight
        is stored in float, and ``int8_nodes`` the number of those whose weight is stored in int8.

    Raises:
        RuntimeFault: the file is no ONNX model.
    """
    graph, opset = _read(path)
    weights = _weight_dtypes(graph)
    return {
        "opset": opset,
        "operators": dict(sorted(Counter(node.op_type for node in graph.node).items())),
        "weight_bytes": _bytes_by_dtype(graph),
        "float_nodes": [name for name, dtype in weights.items() if dtype.startswith("float")],
        "int8_nodes": sum(dtype == "int8" for dtype in weights.values()),
    }


def _weight_dtypes(graph: onnx.GraphProto) -> dict[str, str]:
    # One column is the row scales of an int8 embedding table.
    dtypes = {tensor.name: _dtype(tensor) for tensor in graph.initializer if list(tensor.dims[1:]) != [1]}
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in dtypes:
            dtypes[node.output[0]] = dtypes[node.input[0]]
    weights = {node.name: node.input[WEIGHT_INPUT[node.op_type]] for node in graph.node if node.op_type in WEIGHT_INPUT}
    return {name: dtypes[weight] for name, weight in weights.items() if weight in dtypes}


def _read(path: Path) -> tuple[onnx.GraphProto, int]:
    try:
        model = onnx.load(path, load_external_data=False)
    except (DecodeError, OSError) as error:
        raise RuntimeFault(f"{path.name} is no ONNX model: {error}") from error
    versions = [item.version for item in model.opset_import if not item.domain]
    if not versions:
        raise RuntimeFault(f"{path.name} is no ONNX model: it names no opset")
    return model.graph, versions[0]


def _dtype(tensor: onnx.TensorProto) -> str:
    return onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).name


def _bytes_by_dtype(graph: onnx.GraphProto) -> dict[str, int]:
    totals: Counter[str] = Counter()
    for tensor in graph.initializer:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        count = 1
        for size in tensor.dims:
            count *= size
        totals[dtype.name] += count * dtype.itemsize
    return dict(sorted(totals.items()))
