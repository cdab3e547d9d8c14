"""Weights stored small and computed in float.

    MatMul(x, w[in, out])     → MatMul(x, DequantizeLinear(int4[in, out], scale[in/32, out]))
    Conv(x, w[out, in, k, k]) → Conv(x, Reshape(DequantizeLinear(int4[out, in·k·k], scale[out, in/32])))
    Gemm(x, w[out, in])       → Gemm(x, Cast(float16[out, in]))

Operators of the standard alone: what fuses them, or folds the constants at load, is the runtime's affair.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import onnx_ir as ir
from onnxscript.version_converter import convert_version

from md_export.spec.scheme import QuantScheme
from md_export.targets.onnx.describe import WEIGHT_INPUT
from md_export.targets.onnx.embedding import initializer, is_table_lookup, quantize_table
from md_export.targets.onnx.integers import integers
from md_export.targets.onnx.storage import integer_storage

# int4 and blocks came with it, scales in float16 with 19. The converter rewrites what changed its meaning on the way.
OPSET: Final = 21


def store_weights(model: ir.Model, storages: Mapping[str, QuantScheme]) -> None:
    """Store the weights of some nodes as integers or in float16, in place; all is computed in the type it was.

    Args:
        model: lowered.
        storages: how, by node name; float32 leaves a weight as it is. A weight that several nodes read is stored as
            the first of them wants it.
    """
    if any(map(_is_new, storages.values())):
        convert_version(model, OPSET)
    made: dict[str, ir.Value] = {}
    for node in list(model.graph):
        if node.name is not None and node.name in storages:
            _store(model.graph, node, storages[node.name], made)
    model.graph.sort()


def _is_new(storage: QuantScheme) -> bool:
    half_scales = storage.weights == "int8" and storage.activations == "float16"
    return storage.weights == "int4" or storage.block_size is not None or half_scales


def _store(graph: ir.Graph, node: ir.Node, storage: QuantScheme, made: dict[str, ir.Value]) -> None:
    position = WEIGHT_INPUT[node.op_type]
    weight = node.inputs[position]
    if weight is None or weight.name is None or weight.dtype is None or weight.dtype.numpy() == storage.weights:
        return
    if is_table_lookup(node) and storage.weights == "int8":
        quantize_table(graph, node, per_row=storage.granularity == "channel")
        return
    if weight.name not in made:
        nodes = _half(graph, node, weight) if storage.weights == "float16" else _integer(graph, node, weight, storage)
        graph.insert_before(node, nodes)
        made[weight.name] = nodes[-1].outputs[0]
    node.replace_input_with(position, made[weight.name])
    if not weight.uses():
        del graph.initializers[weight.name]


def _half(graph: ir.Graph, node: ir.Node, weight: ir.Value) -> list[ir.Node]:
    stored = initializer(graph, f"{weight.name}_float16", _values(weight).astype(np.float16))
    return [_node("Cast", [stored], node, f"{weight.name}_float32", to=ir.DataType.FLOAT.value)]


def _integer(graph: ir.Graph, node: ir.Node, weight: ir.Value, storage: QuantScheme) -> list[ir.Node]:
    values, made = _values(weight), _output_axis(node)
    stored = integers(values, made, integer_storage(values.shape if made == 0 else values.shape[::-1], storage))
    constants = [
        initializer(graph, f"{weight.name}_{storage.weights}", stored.values),
        initializer(graph, f"{weight.name}_scale", stored.scales),
    ]
    nodes = [_node("DequantizeLinear", constants, node, f"{weight.name}_dequantized", **stored.attributes)]
    if stored.values.shape != values.shape:
        shape = initializer(graph, f"{weight.name}_shape", np.array(values.shape, np.int64))
        nodes.append(_node("Reshape", [nodes[0].outputs[0], shape], node, f"{weight.name}_reshaped"))
    return nodes


def _node(kind: str, inputs: list[ir.Value], reader: ir.Node, output: str, **attributes: int) -> ir.Node:
    # The reader's name first: it tells the module.
    made = ir.node(kind, inputs, attributes, name=f"{reader.name}.weight.{kind}")
    made.outputs[0].name = output
    return made


def _values(weight: ir.Value) -> np.ndarray[Any, Any]:
    if weight.const_value is None:
        raise ValueError(f"{weight.name} is computed; only constants can be stored otherwise")
    return np.asarray(weight.const_value.numpy())


def _output_axis(node: ir.Node) -> int:
    """Axis of the output channels: a linear's weight is transposed unless Gemm does that."""
    turned = node.attributes.get("transB")
    return 0 if node.op_type == "Conv" or (turned is not None and turned.as_int()) else 1
