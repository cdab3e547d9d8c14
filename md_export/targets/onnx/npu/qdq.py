"""Static QDQ of a whole graph, as Hexagon computes in integers: every operation, not the products alone.

Types and overrides are those of onnxruntime's own helper for QNN; ranges are measured as for any other int8 file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx_ir as ir
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import TensorsData
from onnxruntime.quantization.execution_providers.qnn import get_qnn_qdq_config
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.quant_utils import load_model_with_shape_infer
from onnxscript.version_converter import convert_version

from md_export.errors import ConversionError
from md_export.targets.contract import LoweringJob
from md_export.targets.onnx.embedding import initializer
from md_export.targets.onnx.npu.apart import keep_apart
from md_export.targets.onnx.npu.masks import soften_masks
from md_export.targets.onnx.quiet import quiet
from md_export.targets.onnx.ranges import measure_ranges
from md_export.targets.onnx.save import weights_are_external
from md_export.targets.onnx.sessions import ORT_ERRORS
from md_export.targets.onnx.target import OnnxModel
from md_export.targets.onnx.weights import OPSET

_ACTIVATIONS: Final = {"int8_static": QuantType.QUInt8, "int16_static": QuantType.QUInt16}
_WEIGHTS: Final = {"int8": QuantType.QInt8, "int4": QuantType.QInt4}


def quantize_for_npu(model: ir.Model, job: LoweringJob, exclude: Sequence[str]) -> ir.Model:
    """Insert QuantizeLinear/DequantizeLinear pairs around every operation, with the ranges that calibration shows.

    Args:
        model: float32 graph; is changed.
        job: gives scheme, calibration inputs and the scratch folder.
        exclude: names of nodes that stay float.

    Raises:
        ConversionError: calibration or the quantizer failed.
    """
    convert_version(model, OPSET)
    _own_norm_constants(model)
    _divide(model)
    keep_apart(model)
    path = job.workdir / f"{job.component}.float.onnx"
    OnnxModel(model).save(path)
    try:
        with quiet():
            config = _config(path, job, exclude, _norm_scales(model))
            ranges = measure_ranges(path, config.op_types_to_quantize, weights_are_external(model), job)
            soften_masks(model, ranges)
            path.unlink()
            OnnxModel(model).save(path)
            return _quantized(path, config, ranges)
    except (*ORT_ERRORS, ValueError) as error:
        raise ConversionError(f"{job.component}: onnxruntime's quantizer failed: {error}") from error


def _norm_scales(model: ir.Model) -> dict[str, list[dict[str, Any]]]:
    """Scales of norms as uint8.

    Beside values of 16 bits and a bias of int32 the NPU takes no others. The helper gives them the values' type where
    weights have a scale per channel, and the weights', int8, where they have not.
    """
    norms = [node.inputs[1] for node in model.graph if node.op_type == "LayerNormalization"]
    return {scale.name or "": [{"quant_type": QuantType.QUInt8}] for scale in norms if scale}


def _config(path: Path, job: LoweringJob, exclude: Sequence[str], overrides: dict[str, list[dict[str, Any]]]) -> Any:
    config = get_qnn_qdq_config(
        path,
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


def _quantized(path: Path, config: Any, ranges: TensorsData) -> ir.Model:
    quantizer = QDQQuantizer(
        load_model_with_shape_infer(path),
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
    return quantized


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
    """Each norm has constants of its own.

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
