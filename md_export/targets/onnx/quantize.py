"""Apply a scheme to the exported graph: float stays as lowered, int8 becomes static QDQ, U8S8."""

from __future__ import annotations

import dataclasses
from typing import Final, cast

import onnx_ir as ir

from md_export.errors import ConversionError
from md_export.targets.contract import LoweringJob
from md_export.targets.notes import labelled
from md_export.targets.onnx.clean import module_path, strip
from md_export.targets.onnx.embedding import is_table_lookup, quantize_table
from md_export.targets.onnx.qdq import QUANTIZED_OPS, quantize_static

SCHEMES: Final = (("float32", "float32"), ("float16", "float16"), ("int8", "int8_static"))


def check_scheme(job: LoweringJob) -> None:
    """Refuse a combination that this target cannot make.

    Raises:
        ConversionError: names the combinations that it can.
    """
    asked = (job.scheme.weights, job.scheme.activations)
    if asked not in SCHEMES:
        known = ", ".join(f"{weights}/{activations}" for weights, activations in SCHEMES)
        raise ConversionError(
            f"{job.component}: the onnx target has no weights/activations {'/'.join(asked)}; use one of {known}"
        )
    if job.scheme.refinements:
        raise ConversionError(
            f"{job.component}: the onnx target has no {job.scheme.refinements[0]}; "
            "it stores int8 with a scale per tensor or channel"
        )
    if job.scheme.weights == "int8" and not job.calibration:
        raise ConversionError(f"{job.component}: int8_static needs calibration inputs; add prompts to the golden plan")


def quantize(model: object, job: LoweringJob) -> ir.Model:
    """Quantize what :func:`lower` returned.

    Conv, Gemm and MatMul with a constant weight take uint8 activations and int8 weights; products of two
    activations (attention) stay float. Embedding tables are stored in int8 with one scale per row. The job's notes
    are added here, after whatever strips an exporter's.

    Raises:
        ConversionError: the scheme is not supported, a ``keep_float`` glob matches nothing, or
            onnxruntime's quantizer failed.
    """
    check_scheme(job)
    lowered = cast(ir.Model, model)
    quantized = _quantized(lowered, job) if job.scheme.weights == "int8" else lowered
    quantized.metadata_props.update(labelled(job.notes))
    return quantized


def _quantized(lowered: ir.Model, job: LoweringJob) -> ir.Model:
    kept = _kept_float(lowered, job)
    quantized = quantize_static(lowered, job, exclude=kept)
    for node in list(quantized.graph):
        if is_table_lookup(node) and node.name not in kept:
            quantize_table(quantized.graph, node, per_row=job.scheme.granularity == "channel")
    quantized.graph.sort()
    strip(quantized)
    return quantized


def _kept_float(model: ir.Model, job: LoweringJob) -> list[str]:
    """Names of the nodes that the scheme's globs keep in float, in graph order."""
    names = [node.name or "" for node in model.graph if node.op_type in QUANTIZED_OPS or is_table_lookup(node)]
    for pattern in job.scheme.keep_float:
        only = dataclasses.replace(job.scheme, keep_float=(pattern,))
        if not any(only.keeps_float(module_path(name)) for name in names):
            raise ConversionError(
                f"{job.component}: keep_float pattern {pattern!r} matches no convolution, linear or embedding module"
            )
    return [name for name in names if job.scheme.keeps_float(module_path(name))]
