"""What an ONNX file really holds: operators, stored bytes by type, and where weights stayed float."""

from __future__ import annotations

from collections import Counter
from math import prod
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from md_export.errors import RuntimeFault, one_line
from md_export.targets.contract import Description
from md_export.targets.notes import notes_among
from md_export.targets.onnx.fused import ORT_SUFFIX, as_onnx
from md_export.targets.onnx.standard import qualified
from md_export.targets.onnx.wire import MalformedFileError, read_without_weights

# Which input of an operator is its weight.
WEIGHT_INPUT: Final = {"Conv": 1, "Gemm": 1, "MatMul": 1, "Gather": 0}
# What onnx says of constants that make no sense.
MALFORMED: Final = (onnx.checker.ValidationError, OSError, ValueError, KeyError, IndexError, TypeError)
# What stands between a stored weight and the operator that takes it.
_DECODING: Final = ("DequantizeLinear", "Cast", "Reshape")


def describe(path: Path) -> Description:
    """Read a saved graph without running it.

    Weights are the constants of Conv, Gemm, MatMul and Gather, each under its node's name. QuantizeLinear
    would turn a constant NaN into numbers, hence the look at the constants themselves.

    Raises:
        RuntimeFault: the file is no ONNX model, or its weights are not beside it.
    """
    model = read_graph(path)
    try:
        return _description(model, path.parent)
    except MALFORMED as error:
        raise RuntimeFault(f"{path.name}: its weights cannot be read: {one_line(error)}") from error


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
    # One column is the row scales of an int8 embedding table.
    dtypes = {tensor.name: _dtype(tensor) for tensor in graph.initializer if list(tensor.dims[1:]) != [1]}
    for node in graph.node:
        if node.op_type in _DECODING and node.input[0] in dtypes:
            dtypes[node.output[0]] = dtypes[node.input[0]]
    weights = {node.name: node.input[WEIGHT_INPUT[node.op_type]] for node in graph.node if node.op_type in WEIGHT_INPUT}
    return {name: dtypes[weight] for name, weight in weights.items() if weight in dtypes}


def read_graph(path: Path) -> onnx.ModelProto:
    """Parse a file; its weights stay in it, or beside it. Those of an ``.ort`` file are read.

    Raises:
        RuntimeFault: the file is no ONNX model.
    """
    if path.suffix == ORT_SUFFIX:
        return as_onnx(path)
    try:
        model = read_without_weights(path)
    except (DecodeError, MalformedFileError, OSError) as error:
        raise RuntimeFault(f"{path.name} is no ONNX model: {error}") from error
    if not any(item.version for item in model.opset_import if not item.domain):
        raise RuntimeFault(f"{path.name} is no ONNX model: it names no opset")
    return model


def read_unfused(path: Path) -> onnx.ModelProto:
    """As :func:`read_graph`, for those who look for the checkpoint's modules and tensors inside.

    Raises:
        RuntimeFault: onnxruntime has fused it, too.
    """
    model = read_graph(path)
    if "form" in notes_among({pair.key: pair.value for pair in model.metadata_props}):
        raise RuntimeFault(
            f"{path.name} was fused by onnxruntime: its operators and constants are no longer the checkpoint's modules "
            "and tensors. Export the same recipe without --ort or --cpu-fused and look into that; verify judges both"
        )
    return model


def _finite(tensor: onnx.TensorProto, folder: Path) -> bool:
    if not _dtype(tensor).startswith("float"):
        return True
    return bool(np.isfinite(onnx.numpy_helper.to_array(tensor, str(folder))).all())


def _dtype(tensor: onnx.TensorProto) -> str:
    return onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).name


def _bytes_by_dtype(graph: onnx.GraphProto) -> dict[str, int]:
    totals: Counter[str] = Counter()
    for tensor in graph.initializer:
        totals[_dtype(tensor)] += stored_bytes(tensor)
    return dict(sorted(totals.items()))


def stored_bytes(tensor: onnx.TensorProto) -> int:
    """Of a constant's values; two of int4 are one byte."""
    return int(-(-prod(tensor.dims) * ir.DataType(tensor.data_type).bitwidth // 8))
