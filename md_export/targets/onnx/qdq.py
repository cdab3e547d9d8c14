"""onnxruntime's static quantizer on a graph without its weights, and the weights rounded as it asks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import onnx
import onnx_ir as ir
from onnxruntime.quantization import QuantType, StaticQuantConfig
from onnxruntime.quantization.calibrate import TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.quant_utils import TENSOR_NAME_QUANT_SUFFIX, add_infer_metadata, quantize_nparray

from md_export.errors import ConversionError, raised_as
from md_export.targets.contract import LoweringJob
from md_export.targets.lowering import quiet
from md_export.targets.onnx.describe import WEIGHT_INPUT
from md_export.targets.onnx.ranges import measure_ranges
from md_export.targets.onnx.save import ORT_ERRORS
from md_export.targets.onnx.weights import output_axis
from md_export.targets.onnx.wire import release, with_shapes

QUANTIZED_OPS: Final = ("Conv", "Gemm", "MatMul")
# A convolution without a quantized output is not fused to QLinearConv and runs in float: 3.6× slower on the
# nano UNet. Linear layers run in int8 without it, and the nano text encoder gains 6 dB.
_FLOAT_OUTPUT: Final = ["Gemm", "MatMul"]


def keep_biases_apart(graph: ir.Graph) -> None:
    """Give each bias that is added to a product as many axes as the product has, in place.

        Add(MatMul(x, w), b[out]) → Add(MatMul(x, w), b[1, 1, out])

    onnxruntime fuses the left form to Gemm before it looks for int8 arithmetic, and has no Gemm that takes int8
    operands and a float bias: all linear layers would run in float, their weights widened on every call. On the
    full-size UNet that is half of the time. The right form it leaves alone, and computes the product in int8.
    """
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


@contextmanager
def quantizing(component: str) -> Iterator[None]:
    """Run onnxruntime's quantizer silently; ConversionError, with the component, where it fails."""
    with raised_as(ConversionError, f"{component}: onnxruntime's quantizer failed", (*ORT_ERRORS, ValueError)), quiet():
        yield


def quantize_static(model: ir.Model, job: LoweringJob, exclude: Sequence[str]) -> ir.Model:
    """Insert QuantizeLinear/DequantizeLinear pairs with the ranges that calibration shows, by the job's rule.

    Args:
        model: float32 graph; its biases get other shapes, see :func:`keep_biases_apart`.
        job: gives calibration inputs and granularity.
        exclude: names of nodes that stay float.

    Raises:
        ConversionError: calibration or the quantizer failed.
    """
    keep_biases_apart(model.graph)
    with quantizing(job.component):
        config = StaticQuantConfig(
            None,  # ranges are measured elsewhere
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=job.scheme.granularity == "channel",
            nodes_to_exclude=[*exclude, *_products_of_activations(model)],
            op_types_to_quantize=list(QUANTIZED_OPS),
            extra_options={"OpTypesToExcludeOutputQuantization": _FLOAT_OUTPUT},
        )
        return with_pairs(model, config, measure_ranges(model, config, job))


def with_pairs(model: ir.Model, config: StaticQuantConfig, ranges: TensorsData) -> ir.Model:
    """The float graph with the pairs of QuantizeLinear and DequantizeLinear that a configuration asks for.

    The quantizer holds several copies of a graph and rounds one channel after another. A channel's scale depends on its
    extremes alone, so it sees no other weights, and all are rounded afterwards.
    """
    proto, extremes = with_shapes(model), dict[str, ir.Value]()
    add_infer_metadata(proto)
    for tensor in proto.graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        value = model.graph.initializers[tensor.name]
        seen, axis = _array(value), _output_axis(value)
        if axis is not None:
            extremes[tensor.name], seen = value, _extremes(seen, axis)
        tensor.CopyFrom(onnx.numpy_helper.from_array(seen, tensor.name))
    quantizer = QDQQuantizer(
        proto,
        per_channel=config.per_channel,
        reduce_range=False,
        weight_qType=config.weight_type,
        activation_qType=config.activation_type,
        tensors_range=ranges,
        nodes_to_quantize=[],
        nodes_to_exclude=config.nodes_to_exclude,
        op_types_to_quantize=config.op_types_to_quantize,
        extra_options=config.extra_options,
    )
    quantizer.quantize_model()
    quantized: ir.Model = ir.from_proto(quantizer.model.model)
    for name, value in quantized.graph.initializers.items():
        if name in extremes:  # stays float
            _put(value, extremes[name].const_value)
        elif (weight := extremes.get(name.removesuffix(TENSOR_NAME_QUANT_SUFFIX))) is not None:
            _round(value, weight)
    return quantized


def _array(value: ir.Value) -> np.ndarray[Any, Any]:
    if value.const_value is None:
        raise ValueError(f"{value.name} has no values")
    return np.asarray(value.const_value.numpy())


def _output_axis(weight: ir.Value) -> int | None:
    """Axis of a weight's output channels; None for what is not read as a weight alone."""
    axes = {
        output_axis(node) if node.op_type in QUANTIZED_OPS and place == WEIGHT_INPUT[node.op_type] else None
        for node, place in weight.uses()
    }
    return axes.pop() if len(axes) == 1 else None


def _extremes(weight: np.ndarray[Any, Any], axis: int) -> np.ndarray[Any, Any]:
    """Return the least and the greatest of each output channel, ``[out, 2, 1, 1]`` or ``[2, out]``."""
    others = tuple(other for other in range(weight.ndim) if other != axis)
    ends = weight.min(others, keepdims=True), weight.max(others, keepdims=True)
    return np.concatenate(ends, 1 - axis)


def _round(value: ir.Value, weight: ir.Value) -> None:
    """Give a quantized initializer all of its weight, by the scales that its DequantizeLinear has."""
    (node, _), dtype = next(iter(value.uses())), value.dtype
    if dtype is None or weight.const_value is None:
        raise ValueError(f"{value.name} has no type")
    scale, zero = (_array(item).astype(np.float32) for item in node.inputs[1:3] if item is not None)
    values = _array(weight)
    if scale.ndim:
        shape = [-1 if axis == node.attributes["axis"].as_int() else 1 for axis in range(values.ndim)]
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    rounded = quantize_nparray(dtype.value, values, scale, zero).astype(dtype.numpy(), copy=False)
    _put(value, ir.tensor(rounded, dtype, name=value.name))
    release(weight.const_value)


def _put(value: ir.Value, tensor: ir.TensorProtocol | None) -> None:
    if tensor is not None:
        value.const_value, value.shape = tensor, ir.Shape(tensor.shape.numpy())


def _products_of_activations(model: ir.Model) -> list[str]:
    # The QDQ quantizer ignores its own option MatMulConstBOnly.
    return [
        node.name or ""
        for node in model.graph
        if node.op_type == "MatMul" and node.inputs[1] is not None and not node.inputs[1].is_initializer()
    ]
