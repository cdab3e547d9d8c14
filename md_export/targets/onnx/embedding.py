"""Embedding tables in int8: rows are looked up as integers and scaled after the look-up.

    Gather(float[V, D], ids) → Mul(Cast(Gather(int8[V, D], ids)), Gather(float[V, 1], ids))

onnxruntime's own rewrite has one scale for the whole table; a DequantizeLinear with one scale per row would
expand the whole table on each call. CLIP's table is a third of the text encoder.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from md_export.targets.onnx.integers import symmetric


def is_table_lookup(node: ir.Node) -> bool:
    """Whether the node gathers rows of a constant float matrix."""
    table = node.inputs[0] if node.op_type == "Gather" else None
    if table is None or not table.is_initializer() or table.const_value is None:
        return False
    return (
        table.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16)
        and len(table.const_value.shape) == 2
        and _axis(node) == 0
    )


def quantize_table(graph: ir.Graph, node: ir.Node, per_row: bool) -> None:
    """Store the table of ``node`` in int8, in place.

    Args:
        graph: holds ``node``.
        node: see :func:`is_table_lookup`.
        per_row: one scale per row, else the same for all.

    Raises:
        ValueError: ``node`` gathers from something computed.
    """
    table, ids, looked_up = node.inputs[0], node.inputs[1], node.outputs[0]
    if table is None or table.name is None or table.const_value is None:
        raise ValueError(f"{node.name} looks up no constant table")
    values = table.const_value.numpy()
    rows, scales = symmetric(values, (1,) if per_row else (0, 1), bits=8)
    scales = np.ascontiguousarray(np.broadcast_to(scales, (len(rows), 1)))
    prefix = node.name or ""
    integers = ir.node("Gather", [initializer(graph, f"{table.name}_int8", rows), ids], name=prefix)
    scale = ir.node("Gather", [initializer(graph, f"{table.name}_scale", scales), ids], name=f"{prefix}.scale")
    cast = ir.node(
        "Cast", [integers.outputs[0]], {"to": ir.DataType.from_numpy(values.dtype).value}, name=f"{prefix}.cast"
    )
    product = ir.node("Mul", [cast.outputs[0], scale.outputs[0]], name=f"{prefix}.dequantize")
    for suffix, made in (("int8", integers), ("scale", scale), ("cast", cast)):
        made.outputs[0].name = f"{looked_up.name}_{suffix}"
    ir.convenience.replace_nodes_and_values(
        graph, node, [node], [integers, scale, cast, product], [looked_up], [product.outputs[0]]
    )
    if not table.uses():
        del graph.initializers[table.name]


def _axis(node: ir.Node) -> int:
    axis = node.attributes.get("axis")
    return 0 if axis is None else axis.as_int()


def initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """A new constant of the graph."""
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape))
    graph.register_initializer(value)
    return value
