"""onnxruntime's static quantizer, driven step by step so that every scratch file stays in the job's folder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import onnx_ir as ir
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.quant_utils import load_model_with_shape_infer

from md_export.errors import ConversionError
from md_export.targets.contract import LoweringJob
from md_export.targets.onnx.biases import keep_biases_apart
from md_export.targets.onnx.quiet import quiet
from md_export.targets.onnx.ranges import measure_ranges
from md_export.targets.onnx.save import weights_are_external
from md_export.targets.onnx.sessions import ORT_ERRORS
from md_export.targets.onnx.target import OnnxModel

QUANTIZED_OPS: Final = ("Conv", "Gemm", "MatMul")
# A convolution without a quantized output is not fused to QLinearConv and runs in float: 3.6× slower on the
# nano UNet. Linear layers run in int8 without it, and the nano text encoder gains 6 dB.
_FLOAT_OUTPUT: Final = ["Gemm", "MatMul"]


def quantize_static(model: ir.Model, job: LoweringJob, exclude: Sequence[str]) -> ir.Model:
    """Insert QuantizeLinear/DequantizeLinear pairs with the ranges that calibration shows, by the job's rule.

    Args:
        model: float32 graph; its biases get other shapes, see :func:`keep_biases_apart`.
        job: gives calibration inputs, granularity and the scratch folder.
        exclude: names of nodes that stay float.

    Raises:
        ConversionError: calibration or the quantizer failed.
    """
    path = job.workdir / f"{job.component}.float.onnx"
    keep_biases_apart(model.graph)
    OnnxModel(model).save(path)
    excluded = [*exclude, *_products_of_activations(model)]
    try:
        with quiet():
            ranges = measure_ranges(path, QUANTIZED_OPS, weights_are_external(model), job)
            quantizer = QDQQuantizer(
                load_model_with_shape_infer(path),
                per_channel=job.scheme.granularity == "channel",
                reduce_range=False,
                weight_qType=QuantType.QInt8,
                activation_qType=QuantType.QUInt8,
                tensors_range=ranges,
                nodes_to_quantize=[],
                nodes_to_exclude=excluded,
                op_types_to_quantize=list(QUANTIZED_OPS),
                extra_options={"OpTypesToExcludeOutputQuantization": _FLOAT_OUTPUT},
            )
            quantizer.quantize_model()
    except (*ORT_ERRORS, ValueError) as error:
        raise ConversionError(f"{job.component}: onnxruntime's quantizer failed: {error}") from error
    quantized: ir.Model = ir.from_proto(quantizer.model.model)
    return quantized


def _products_of_activations(model: ir.Model) -> list[str]:
    # The QDQ quantizer ignores its own option MatMulConstBOnly.
    return [
        node.name or ""
        for node in model.graph
        if node.op_type == "MatMul" and node.inputs[1] is not None and not node.inputs[1].is_initializer()
    ]
