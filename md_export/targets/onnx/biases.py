"""Biases of linear layers in a shape that keeps onnxruntime from undoing int8.

    Add(MatMul(x, w), b[out]) → Add(MatMul(x, w), b[1, 1, out])

onnxruntime fuses the left form to Gemm before it looks for int8 arithmetic, and has no Gemm that takes int8 operands
and a float bias: all linear layers would run in float, their weights widened on every call. On the full-size UNet that
is half of the time. The right form it leaves alone, and computes the product in int8.
"""

from __future__ import annotations

import onnx_ir as ir


def keep_biases_apart(graph: ir.Graph) -> None:
    """Give each bias that is added to a product as many axes as the product has, in place."""
    for node in graph:
        if node.op_type != "Add":
            continue
        product, bias = node.inputs
        if product is None or bias is None or not _is_product(product) or bias.const_value is None:
            continue
        if len(bias.const_value.shape) == 1 and product.shape is not None:
            _widen(bias, len(product.shape))


def _is_product(value: ir.Value) -> bool:
    producer = value.producer()
    return producer is not None and producer.op_type == "MatMul"


def _widen(bias: ir.Value, rank: int) -> None:
    if bias.const_value is None:
        return
    values = bias.const_value.numpy().reshape(*[1] * (rank - 1), -1)
    bias.const_value, bias.shape = ir.tensor(values, name=bias.name), ir.Shape(values.shape)
