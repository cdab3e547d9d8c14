"""A float16 graph as a processor without float16 arithmetic can execute it honestly.

    y = MatMul(a, b)        in float16
    y = Cast(Cast(MatMul(Cast(a), Cast(b)), float16), float32)        sums in float32, the result rounded

onnxruntime has float16 kernels for few operators on x86. It runs the others in float32, each between two casts of its
own, and then drops every pair of casts that meet, optimizations off or not (``RemoveDuplicateCastTransformer``): what
comes out has hardly been rounded, and nothing overflows. Casts that the graph itself holds are kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from md_export.targets.onnx.describe import read_graph

_HALF: Final = ir.DataType.FLOAT16
_FLOAT: Final = ir.DataType.FLOAT
# They give values that they were given, which are rounded already.
_MOVING: Final = frozenset(
    ("Concat", "Gather", "Identity", "Reshape", "Resize", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze")
)


def rounded_graph(path: Path) -> onnx.ModelProto | None:
    """The saved graph in float32 with every result that it has in float16 rounded to float16; None where it has none.

    Values keep their names. Weights that lie beside the file stay there: open the session with
    :data:`md_export.targets.onnx.sessions.WEIGHTS_FOLDER`.

    Raises:
        RuntimeFault: the file is no ONNX model.
    """
    model = ir.from_proto(read_graph(path))
    ir.external_data.set_base_dir(model.graph, path.parent)
    ShapeInferencePass()(model)
    halves = [value for node in model.graph for value in node.outputs if value.dtype == _HALF]
    if not halves:
        return None
    for constant in list(model.graph.initializers.values()):
        if constant.dtype == _HALF:
            _widen(model.graph, constant)
    for value in halves:
        _round(model.graph, value)
    proto: onnx.ModelProto = ir.to_proto(model)
    return proto


def _widen(graph: ir.Graph, constant: ir.Value) -> None:
    uses = list(constant.uses())
    cast = _cast(constant, _FLOAT, f"{constant.name}.float32")
    graph.insert_before(graph[0], [cast])
    _redirect(uses, cast.outputs[0])


def _round(graph: ir.Graph, value: ir.Value) -> None:
    node, uses, name = value.producer(), list(value.uses()), value.name
    if node is None or node.op_type in _MOVING:
        value.dtype = _FLOAT
        return
    value.name = f"{name}.exact"
    if node.op_type == "Cast":
        casts = [_cast(value, _FLOAT, str(name))]
    else:
        value.dtype = _FLOAT
        narrow = _cast(value, _HALF, f"{name}.float16")
        casts = [narrow, _cast(narrow.outputs[0], _FLOAT, str(name))]
    graph.insert_after(node, casts)
    _redirect(uses, casts[-1].outputs[0])


def _redirect(uses: Iterable[tuple[ir.Node, int]], value: ir.Value) -> None:
    for node, position in uses:
        node.replace_input_with(position, value)


def _cast(value: ir.Value, dtype: ir.DataType, name: str) -> ir.Node:
    node = ir.node("Cast", [value], {"to": dtype.value})
    node.outputs[0].name, node.outputs[0].dtype = name, dtype
    return node
