"""Apply a scheme to the exported graph: weights stored small, or static QDQ; else it stays as lowered."""

from __future__ import annotations

import dataclasses
from typing import Final

import onnx_ir as ir

from md_export.errors import ConversionError
from md_export.spec.scheme import QuantScheme, Weights
from md_export.targets.contract import LoweringJob, labelled
from md_export.targets.lowering import check_weight_globs
from md_export.targets.onnx.clean import module_path, strip
from md_export.targets.onnx.describe import WEIGHT_INPUT
from md_export.targets.onnx.npu.qdq import quantize_for_npu
from md_export.targets.onnx.qdq import QUANTIZED_OPS, quantize_static
from md_export.targets.onnx.target import OnnxModel
from md_export.targets.onnx.weights import fits_table, is_table_lookup, quantize_table, store_weights

_STATIC: Final = "int8_static"
_STATIC16: Final = "int16_static"
SCHEMES: Final = (
    ("float32", "float32"),
    ("float16", "float16"),
    ("int8", _STATIC),
    ("float16", "float32"),
    ("int8", "float32"),
    ("int4", "float32"),
    ("int8", "float16"),
    ("int4", "float16"),
    ("int8", _STATIC16),
    ("int4", _STATIC16),
)


def check_scheme(job: LoweringJob) -> None:
    """Refuse a combination that this target cannot make.

    Raises:
        ConversionError: names the combinations that it can.
    """
    own, *ruled = job.scheme.storages
    static = own.is_static
    for storage in [own] if static else [own, *ruled]:
        _check_storage(storage, job.component)
    if static and own.block_size:
        raise ConversionError(
            f"{job.component}: onnx has no blocks with {own.activations}; use a scale per tensor or channel"
        )
    if own.activations == _STATIC16 and not job.npu:
        raise ConversionError(
            f"{job.component}: {_STATIC16} is for phones' NPUs; name one with --npu, or in the recipe"
        )
    if static and any(storage.weights != "float32" for storage in ruled):
        raise ConversionError(
            f"{job.component}: with {own.activations} a rule of an onnx recipe can say "
            'weights = "float32" and nothing else'
        )
    if static and not job.calibration:
        raise ConversionError(
            f"{job.component}: {own.activations} needs calibration inputs; add prompts to the golden plan"
        )


def _check_storage(storage: QuantScheme, component: str) -> None:
    asked = (storage.weights, storage.activations)
    if asked not in SCHEMES:
        known = ", ".join(f"{weights}/{activations}" for weights, activations in SCHEMES)
        raise ConversionError(
            f"{component}: the onnx target has no weights/activations {'/'.join(asked)}; use one of {known}"
        )
    if storage.sparsity is not None:
        raise ConversionError(
            f"{component}: the onnx target has no sparsity = {storage.sparsity:g}; "
            "it stores all values, as int8 or int4 with a scale per tensor, channel or block"
        )


def quantize(model: OnnxModel, job: LoweringJob) -> OnnxModel:
    """Store what :func:`lower` returned as the scheme says.

    Conv, Gemm and MatMul with a constant weight, and embedding tables, have their weights stored so. With static int8
    they take uint8 activations as well; products of two activations (attention) stay float. A table that is stored in
    int8 has one scale per row. For an NPU every operation is quantized, tables as activations are. The job's notes are
    added here, after whatever strips an exporter's.

    Raises:
        ConversionError: the scheme is not supported, a glob of it matches nothing, or onnxruntime's quantizer failed.
    """
    check_scheme(job)
    lowered = model.model
    storages = _storages(lowered, job)
    if job.scheme.is_static:
        lowered = _static(lowered, job, storages)
    else:
        store_weights(lowered, storages)
    lowered.metadata_props.update(labelled(job.notes))
    return OnnxModel(lowered)


def _static(lowered: ir.Model, job: LoweringJob, storages: dict[str, QuantScheme]) -> ir.Model:
    exclude = [name for name, own in storages.items() if own.weights.startswith("float")]
    if job.npu:
        quantized = quantize_for_npu(lowered, job, exclude)
        strip(quantized)
        return quantized
    quantized = quantize_static(lowered, job, exclude)
    for node in list(quantized.graph):
        if is_table_lookup(node) and storages[node.name or ""].weights == "int8":
            quantize_table(quantized.graph, node, per_row=job.scheme.granularity == "channel")
    quantized.graph.sort()
    strip(quantized)
    return quantized


def _storages(model: ir.Model, job: LoweringJob) -> dict[str, QuantScheme]:
    """How each node's weight is stored, by the node's name, in graph order."""
    nodes = {node.name or "": node for node in model.graph if node.op_type in QUANTIZED_OPS or is_table_lookup(node)}
    check_weight_globs(job, {module_path(name) for name in nodes})
    nodes = {name: node for name, node in nodes.items() if not _multiplies_activations(node)}
    storages = {name: _storage(module_path(name), job.scheme) for name in nodes}
    for name, storage in storages.items():
        if is_table_lookup(nodes[name]) and not job.scheme.is_static and not fits_table(storage):
            raise ConversionError(
                f"{job.component}: {module_path(name)} is an embedding, which onnx looks up as float or as int8 with "
                f'a scale per channel or tensor; add a rule: modules = ["{module_path(name)}"], weights = "int8"'
            )
    return storages


def _multiplies_activations(node: ir.Node) -> bool:
    weight = node.inputs[WEIGHT_INPUT[node.op_type]]
    return weight is None or not weight.is_initializer()


def _storage(path: str, scheme: QuantScheme) -> QuantScheme:
    """As the scheme says of a module; in the type that it computes in where ``keep_float`` has it."""
    if not scheme.keeps_float(path):
        return scheme.for_module(path)
    weights: Weights = "float16" if scheme.activations == "float16" else "float32"
    return dataclasses.replace(scheme, rules=(), weights=weights, granularity="channel", block_size=None)
