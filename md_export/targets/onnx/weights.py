"""Weights stored small and computed in float.

    MatMul(x, w[in, out])     → MatMul(x, DequantizeLinear(int4[in, out], scale[in/32, out]))
    Conv(x, w[out, in, k, k]) → Conv(x, Reshape(DequantizeLinear(int4[out, in·k·k], scale[out, in/32])))
    Gemm(x, w[out, in])       → Gemm(x, Cast(float16[out, in]))

Operators of the standard alone: what fuses them, or folds the constants at load, is the runtime's affair.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Final

import ml_dtypes
import numpy as np
import onnx_ir as ir
from onnxscript.version_converter import convert_version
from torch import nn

from md_export.spec.scheme import QuantScheme, WeightStorage, integer_storage
from md_export.targets.onnx.describe import WEIGHT_INPUT

_TYPES: Final[Mapping[int, Any]] = {8: np.int8, 4: ml_dtypes.int4}
_INTEGERS: Final = ("int8", "int4")
# int4 and blocks came with it, scales in float16 with 19. The converter rewrites what changed its meaning on the way.
OPSET: Final = 21


@dataclass(frozen=True)
class Integers:
    """Operands of a DequantizeLinear.

    Attributes:
        values: int8 or int4, of the weight's shape; ``[out, in·kernel]`` where blocks span a kernel.
        scales: of the weight's own type; a scalar, ``[out]``, or as ``values`` with blocks for elements.
        attributes: DequantizeLinear's axis and block_size, as far as it needs them.
    """

    values: np.ndarray[Any, Any]
    scales: np.ndarray[Any, Any]
    attributes: Mapping[str, int]


def integers(weight: np.ndarray[Any, Any], made: int, storage: WeightStorage) -> Integers:
    """Round a weight to integers.

    A block spans all of a kernel, but DequantizeLinear has blocks along one axis: such a weight becomes a matrix.

    Args:
        weight: float32 or float16, ``[out, in, *kernel]`` or ``[in, out]``.
        made: axis of the output channels, 0 or 1; the other is the input channels'.
        storage: of the weight in torch's layout.
    """
    if storage.groups[1] > 1:
        return _in_blocks(weight, 1 - made, storage)
    whole = storage.groups[0] == 1
    axes = tuple(axis for axis in range(weight.ndim) if whole or axis != made)
    values, scales = symmetric(weight, axes, storage.bits)
    return Integers(values, scales.reshape(() if whole else -1), {} if whole else {"axis": made})


def _in_blocks(weight: np.ndarray[Any, Any], given: int, storage: WeightStorage) -> Integers:
    matrix = weight.reshape(len(weight), -1) if prod(weight.shape[2:]) > 1 else weight
    shape = matrix.shape
    size = shape[given] // storage.groups[1]
    values, scales = symmetric(
        matrix.reshape(*shape[:given], -1, size, *shape[given + 1 :]), (given + 1,), storage.bits
    )
    return Integers(values.reshape(shape), scales.squeeze(given + 1), {"axis": given, "block_size": size})


def symmetric(
    values: np.ndarray[Any, Any], axes: tuple[int, ...], bits: int
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Integers of so many bits, and scales of the values' own type; what lies along ``axes`` shares one."""
    most = 2 ** (bits - 1) - 1
    wide = values.astype(np.float32, copy=False)
    scales = (np.abs(wide).max(axis=axes, keepdims=True) / most).astype(values.dtype)
    scales[scales == 0] = 1
    rounded = np.rint(wide / scales.astype(np.float32))
    return np.clip(rounded, -most, most).astype(_TYPES[bits]), scales


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

        Gather(float[V, D], ids) → Mul(Cast(Gather(int8[V, D], ids)), Gather(float[V, 1], ids))

    onnxruntime's own rewrite has one scale for the whole table; a DequantizeLinear with one scale per row would
    expand the whole table on each call. CLIP's table is a third of the text encoder.

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


def weight_storage(path: str, layer: nn.Module, scheme: QuantScheme) -> WeightStorage | None:
    """How :func:`quantize` stores a layer's weight; ``scheme`` is the module's own, without rules. None: in float.

    The table of positions is folded to a constant that is added, and no weight.
    """
    if not isinstance(layer, nn.Conv2d | nn.Linear | nn.Embedding) or path.endswith("position_embedding"):
        return None
    if scheme.weights not in _INTEGERS or (isinstance(layer, nn.Embedding) and not fits_table(scheme)):
        return None
    return storage_of(tuple(layer.weight.shape), scheme)


def fits_table(scheme: QuantScheme) -> bool:
    """Whether an embedding's rows can be looked up so: Gather takes whole bytes, and each row has one scale."""
    return scheme.weights != "int4" and scheme.block_size is None


def storage_of(shape: tuple[int, ...], scheme: QuantScheme) -> WeightStorage:
    """Storage of a weight of this shape, ``[out, in, *kernel]``, as int8 or int4."""
    return integer_storage(shape, scheme, 16 if scheme.activations == "float16" else 32)


def store_weights(model: ir.Model, storages: Mapping[str, QuantScheme]) -> None:
    """Store the weights of some nodes as integers or in float16, in place; all is computed in the type it was.

    Args:
        model: lowered.
        storages: how, by node name; float32 leaves a weight unchanged. A weight that several nodes read is stored as
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
    values, made = _values(weight), output_axis(node)
    stored = integers(values, made, storage_of(values.shape if made == 0 else values.shape[::-1], storage))
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


def output_axis(node: ir.Node) -> int:
    """Axis of the output channels: a linear's weight is transposed unless Gemm does that."""
    turned = node.attributes.get("transB")
    return 0 if node.op_type == "Conv" or (turned is not None and turned.as_int()) else 1
