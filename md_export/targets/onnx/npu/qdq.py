"""Static QDQ of a whole graph, as Hexagon computes in integers: every operation, not the products alone.

Types and overrides are those of onnxruntime's own helper for QNN; ranges are measured as for any other int8 file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import onnx
import onnx_ir as ir
from onnxruntime.quantization import QuantType, StaticQuantConfig
from onnxruntime.quantization.calibrate import TensorData, TensorsData
from onnxruntime.quantization.execution_providers.qnn import get_qnn_qdq_config
from onnxscript.version_converter import convert_version

from md_export.targets.contract import LoweringJob
from md_export.targets.onnx.qdq import quantizing, with_pairs
from md_export.targets.onnx.ranges import measure_ranges
from md_export.targets.onnx.weights import OPSET, initializer
from md_export.targets.onnx.wire import with_shapes

_MASKED: Final = -1000.0
_ROOM: Final = 16.0
# Types of constants, by their names, as the helper takes them.
Overrides = dict[str, list[dict[str, QuantType]]]
_ACTIVATIONS: Final = {"int8_static": QuantType.QUInt8, "int16_static": QuantType.QUInt16}
_WEIGHTS: Final = {"int8": QuantType.QInt8, "int4": QuantType.QInt4}


def keep_apart(model: ir.Model) -> None:
    """Put multiplications by one into a float32 graph, in place; they are quantized with all the rest.

        Mul(x, Sigmoid(x))             →  Mul(Mul(x, 1), Sigmoid(x))
        InstanceNormalization(x)       →  Mul(InstanceNormalization(x), 1)

    On 16-bit values what it makes of them answers something else than the graph. A swish is wrong on maps of 16
    pixels after an addition, and at some sizes before a 3×3 convolution: about 0 dB, 70 and more with the
    multiplication between them. A group's norm and the affine of its channels are right alone and wrong in some
    places of a UNet. So it is on the simulators of all generations, at all levels of the compiler's optimization
    (tests/targets/onnx/test_onnx_npu_apart.py).
    """
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


def soften_masks(model: ir.Model, ranges: TensorsData) -> None:
    """Give each sum of scores and mask a separate mask, in place, and its range to ``ranges``.

        Softmax(Add(scores, mask))        mask of 0 and -10000 → 0 and -(range of the scores + 16)

    In integers a sum has one step for all of its values: with -10000 among them, 16 bits leave 0.15 for a step.
    What is masked still weighs at most e^-16, 1e-7, of what is not.
    """
    for node in model.graph:
        if node.op_type != "Softmax" or node.inputs[0] is None:
            continue
        total = node.inputs[0].producer()
        if total is not None and total.op_type == "Add":
            _soften(model.graph, total, ranges)


def _soften(graph: ir.Graph, total: ir.Node, ranges: TensorsData) -> None:
    for position, mask in enumerate(total.inputs):
        scores = total.inputs[1 - position]
        if mask is None or mask.const_value is None or scores is None:
            continue
        values = mask.const_value.numpy()
        if values.min() > _MASKED or scores.name not in ranges.data:
            continue
        least, most = (float(end) for end in ranges[scores.name].range_value)
        floor = -(most - least + _ROOM)
        softer = np.where(values <= _MASKED, floor, values).astype(np.float32)
        total.replace_input_with(position, initializer(graph, f"{total.name}.mask", softer))
        if not mask.uses():
            del graph.initializers[mask.name or ""]
        made = total.outputs[0].name or ""
        ranges.data[made] = TensorData(lowest=np.float32(least + floor), highest=np.float32(most))


def quantize_for_npu(model: ir.Model, job: LoweringJob, exclude: Sequence[str]) -> ir.Model:
    """Insert QuantizeLinear/DequantizeLinear pairs around every operation, with the ranges that calibration shows.

    Args:
        model: float32 graph; is changed.
        job: gives scheme and calibration inputs.
        exclude: names of nodes that stay float.

    Raises:
        ConversionError: calibration or the quantizer failed.
    """
    convert_version(model, OPSET)
    _own_norm_constants(model)
    _divide(model)
    keep_apart(model)
    with quantizing(job.component):
        config = _config(with_shapes(model), job, exclude, _norm_scales(model))
        ranges = measure_ranges(model, config, job)
        soften_masks(model, ranges)
        return with_pairs(model, config, ranges)


def _norm_scales(model: ir.Model) -> Overrides:
    """Scales of norms as uint8.

    Beside values of 16 bits and a bias of int32 the NPU takes no others. The helper gives them the values' type where
    weights have a scale per channel, and the weights', int8, where they have not.
    """
    norms = [node.inputs[1] for node in model.graph if node.op_type == "LayerNormalization"]
    return {scale.name or "": [{"quant_type": QuantType.QUInt8}] for scale in norms if scale}


def _config(
    proto: onnx.ModelProto, job: LoweringJob, exclude: Sequence[str], overrides: Overrides
) -> StaticQuantConfig:
    config: StaticQuantConfig = get_qnn_qdq_config(
        proto,
        None,  # ranges are measured elsewhere
        activation_type=_ACTIVATIONS[job.scheme.activations],
        weight_type=_WEIGHTS[job.scheme.weights],
        per_channel=job.scheme.granularity == "channel",
        init_overrides=overrides,
        add_qtype_converts=False,
        nodes_to_exclude=list(exclude),
    )
    config.op_types_to_quantize = sorted(config.op_types_to_quantize)
    return config


def _divide(model: ir.Model) -> None:
    """Reciprocal(x) → Div(1, x).

    onnxruntime's provider makes the quotient of it itself, and stores the 1 with the scale of ``x``: where ``x`` stays
    below 1, the numerator is the largest value that ``x`` can have.
    """
    for node in list(model.graph):
        if node.op_type != "Reciprocal" or node.inputs[0] is None:
            continue
        one = initializer(model.graph, f"{node.name}.one", np.ones(1, np.float32))
        quotient = ir.node("Div", [one, node.inputs[0]], name=node.name)
        made, given = quotient.outputs[0], node.outputs[0]
        made.name, made.shape, made.type = given.name, given.shape, given.type
        ir.convenience.replace_nodes_and_values(model.graph, node, [node], [quotient], [given], [made])


def _own_norm_constants(model: ir.Model) -> None:
    """Give each norm separate constants.

    onnxruntime's quantizer copies a bias that several nodes share, with a scale for each, and calls the copies by the
    bias' name and a number: the second copy of ``val_11`` takes the name of the value ``val_116``, whose readers then
    read the bias.
    """
    for node in model.graph:
        for position in (1, 2) if node.op_type == "InstanceNormalization" else ():
            shared = node.inputs[position]
            if shared is None or shared.const_value is None:
                continue
            values = shared.const_value.numpy()
            node.replace_input_with(position, initializer(model.graph, f"{node.name}.{position}", values))
            if not shared.uses():
                del model.graph.initializers[shared.name or ""]
