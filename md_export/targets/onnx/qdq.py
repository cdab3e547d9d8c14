"""onnxruntime's static quantizer, driven step by step so that every scratch file stays in the job's folder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import onnx_ir as ir
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import TensorsData, create_calibrator
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.quant_utils import load_model_with_shape_infer

from md_export.errors import ConversionError
from md_export.targets.contract import LoweringJob
from md_export.targets.observers import ObserverTable
from md_export.targets.onnx.quiet import quiet
from md_export.targets.onnx.sessions import ORT_ERRORS
from md_export.targets.onnx.save import save, weights_are_external
from md_export.tensors import Arrays

QUANTIZED_OPS: Final = ("Conv", "Gemm", "MatMul")
# A convolution without a quantized output is not fused to QLinearConv and runs in float: 3.6× slower on the
# nano UNet. Linear layers run in int8 without it, and the nano text encoder gains 6 dB.
_FLOAT_OUTPUT: Final = ["Gemm", "MatMul"]


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, cases: Sequence[Arrays]) -> None:
        self._cases = iter(cases)

    def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:
        case = next(self._cases, None)
        return None if case is None else dict(case)


def quantize_static(model: ir.Model, job: LoweringJob, exclude: Sequence[str]) -> ir.Model:
    """Insert QuantizeLinear/DequantizeLinear pairs with the ranges that calibration shows, by the job's rule.

    Args:
        model: float32 graph; left as it is.
        job: gives calibration inputs, granularity and the scratch folder.
        exclude: names of nodes that stay float.

    Raises:
        ConversionError: calibration or the quantizer failed.
    """
    path = job.workdir / f"{job.component}.float.onnx"
    save(model, path)
    excluded = [*exclude, *_products_of_activations(model)]
    try:
        with quiet():
            ranges = _ranges(model, job)
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


def _ranges(model: ir.Model, job: LoweringJob) -> Any:
    """Extremes come from onnxruntime's calibrator, which computes them in the graph: no activation is held.

    Its histograms are not taken: it holds all activations of all inputs, the first input alone fixes the width of a
    bin, and it has no least error. Its graph with the activations as outputs is run for our observers instead.
    """
    by_extremes = job.ranges.observer == "min_max"
    calibrator = create_calibrator(
        job.workdir / f"{job.component}.float.onnx",
        QUANTIZED_OPS,
        augmented_model_path=str(job.workdir / f"{job.component}.calibration.onnx"),
        calibrate_method=CalibrationMethod.MinMax if by_extremes else CalibrationMethod.Percentile,
        use_external_data_format=weights_are_external(model),
    )
    if not by_extremes:
        return _observed(calibrator, job)
    calibrator.collect_data(_Reader(job.calibration))
    return calibrator.compute_data()


def _observed(calibrator: Any, job: LoweringJob) -> TensorsData:
    seen, names = ObserverTable(job.ranges, symmetric=False), sorted(calibrator.tensors_to_calibrate)
    for case in job.calibration:
        for name, values in zip(names, calibrator.infer_session.run(names, dict(case)), strict=True):
            seen.add(name, values)
    floats = {name: tuple(np.array(end, np.float32) for end in ends) for name, ends in seen.ranges().items()}
    return TensorsData(CalibrationMethod.MinMax, floats)


def _products_of_activations(model: ir.Model) -> list[str]:
    # The QDQ quantizer ignores its own option MatMulConstBOnly.
    return [
        node.name or ""
        for node in model.graph
        if node.op_type == "MatMul" and node.inputs[1] is not None and not node.inputs[1].is_initializer()
    ]
