"""onnxruntime's static quantizer, driven step by step so that every scratch file stays in the job's folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, StaticQuantConfig
from onnxruntime.quantization.calibrate import CalibraterBase, TensorsData, create_calibrator
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.quant_utils import load_model_with_shape_infer

from md_export.errors import ConversionError, raised_as
from md_export.spec.tensors import Arrays
from md_export.targets.contract import LoweringJob
from md_export.targets.lowering import quiet
from md_export.targets.observers import ObserverTable, portions
from md_export.targets.onnx.save import ORT_ERRORS, session_options, weights_are_external
from md_export.targets.onnx.target import OnnxModel

# Bytes of activations that one run may give: the full-size UNet has more than its weights.
_PORTION: Final = 1 << 29
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


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, cases: Sequence[Arrays]) -> None:
        self._cases = iter(cases)

    def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:
        case = next(self._cases, None)
        return None if case is None else dict(case)


def measure_ranges(source: Path, operators: Sequence[str], external: bool, job: LoweringJob) -> TensorsData:
    """Range of each float that one of the operators takes or gives, by the job's rule.

    Extremes come from onnxruntime's calibrator, which computes them in the graph. Its histograms are not taken: it
    holds the activations of all inputs at once, the first input fixes the width of a bin, and it has no least error.

    Args:
        source: the float graph.
        operators: their types.
        external: whether weights lie beside it.

    Raises:
        ValueError: an activation holds NaN or Inf.
    """
    path = source.with_suffix(".calibration.onnx")
    if job.ranges.observer != "min_max":
        return _observed(source, operators, external, path, job)
    calibrator = create_calibrator(
        source, operators, str(path), CalibrationMethod.MinMax, use_external_data_format=external
    )
    calibrator.collect_data(_Reader(job.calibration))
    return calibrator.compute_data()


def _observed(source: Path, operators: Sequence[str], external: bool, path: Path, job: LoweringJob) -> TensorsData:
    """By observers of ours, a portion of the activations at a time."""
    base = CalibraterBase(source, operators)
    names, infos = base.select_tensors_to_calibrate(base.model)
    seen = ObserverTable(job.ranges, symmetric=False)
    for portion in portions(((name, _size(infos[name])) for name in sorted(names)), _PORTION):
        del base.model.graph.output[:]
        base.model.graph.output.extend(infos[name] for name in portion)
        onnx.save(base.model, str(path), save_as_external_data=external)
        session = ort.InferenceSession(str(path), session_options(optimized=False))
        for case in job.calibration:
            for name, values in zip(portion, session.run(portion, dict(case)), strict=True):
                seen.add(name, values)
    floats = {name: tuple(np.array(end, np.float32) for end in ends) for name, ends in seen.ranges().items()}
    return TensorsData(CalibrationMethod.MinMax, floats)


def _size(info: Any) -> int:
    """Bytes of one activation."""
    return int(4 * prod(axis.dim_value for axis in info.type.tensor_type.shape.dim))


@contextmanager
def quantizing(component: str) -> Iterator[None]:
    """Run onnxruntime's quantizer silently; ConversionError, with the component, where it fails."""
    with raised_as(ConversionError, f"{component}: onnxruntime's quantizer failed", (*ORT_ERRORS, ValueError)), quiet():
        yield


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
    with quantizing(job.component):
        ranges = measure_ranges(path, QUANTIZED_OPS, weights_are_external(model), job)
        config = StaticQuantConfig(
            _Reader(job.calibration),
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=job.scheme.granularity == "channel",
            nodes_to_exclude=excluded,
            op_types_to_quantize=list(QUANTIZED_OPS),
            extra_options={"OpTypesToExcludeOutputQuantization": _FLOAT_OUTPUT},
        )
        return with_pairs(path, config, ranges)


def with_pairs(path: Path, config: StaticQuantConfig, ranges: TensorsData) -> ir.Model:
    """The saved float graph with the pairs of QuantizeLinear and DequantizeLinear that a configuration asks for."""
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


def _products_of_activations(model: ir.Model) -> list[str]:
    # The QDQ quantizer ignores its own option MatMulConstBOnly.
    return [
        node.name or ""
        for node in model.graph
        if node.op_type == "MatMul" and node.inputs[1] is not None and not node.inputs[1].is_initializer()
    ]
