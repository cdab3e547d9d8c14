"""Pairs of operations that the NPU's compiler must not see as neighbours.

    Mul(x, Sigmoid(x))             →  Mul(Mul(x, 1), Sigmoid(x))
    InstanceNormalization(x)       →  Mul(InstanceNormalization(x), 1)

On 16-bit values what it makes of them answers something else than the graph. A swish is wrong on maps of 16 pixels
after an addition, and at some sizes before a 3×3 convolution: about 0 dB, 70 and more with the multiplication between
them. A group's norm and the affine of its channels are right alone and wrong in some places of a UNet. So it is on the
simulators of all generations, at all levels of the compiler's optimization (tests/targets/onnx/test_onnx_npu_apart.py).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from md_export.targets.onnx.embedding import initializer


def keep_apart(model: ir.Model) -> None:
    """Put multiplications by one into a float32 graph, in place; they are quantized with all the rest."""
    for node in list(model.graph):
        if node.op_type == "Mul":
            _part_swish(model.graph, node)
        elif node.op_type == "InstanceNormalization":
            _part_norm(model.graph, node)


def _part_swish(graph: ir.Graph, product: ir.Node) -> None:
    for position, value in enumerate(product.inputs):
        gate = product.inputs[1 - position]
        made_by = gate.producer() if gate is not None else None
        if value is None or made_by is None or made_by.op_type != "Sigmoid" or made_by.inputs[0] is not value:
            continue
        same = _times_one(graph, value, f"{product.name}.value")
        graph.insert_before(product, same)
        product.replace_input_with(position, same.outputs[0])
        return


def _part_norm(graph: ir.Graph, norm: ir.Node) -> None:
    readers = list(norm.outputs[0].uses())
    same = _times_one(graph, norm.outputs[0], f"{norm.name}.value")
    graph.insert_after(norm, same)
    for node, position in readers:
        node.replace_input_with(position, same.outputs[0])


def _times_one(graph: ir.Graph, value: ir.Value, name: str) -> ir.Node:
    one = initializer(graph, f"{name}.one", np.ones(1, np.float32))
    same = ir.node("Mul", [value, one], name=name)
    made = same.outputs[0]
    made.name, made.shape, made.type = name, value.shape, value.type
    return same
