"""Torch module → ONNX graph in float32 or float16, static shapes, opset 18."""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx_ir as ir
import torch
from onnxscript.optimizer import fold_constants
from torch import nn

from md_export.errors import ConversionError
from md_export.spec.tensors import TensorSpec
from md_export.targets.contract import LoweringJob
from md_export.targets.lowering import check_surface, example_of, half_copy, quiet
from md_export.targets.onnx.clean import clean, name_regions
from md_export.targets.onnx.quantize import check_scheme
from md_export.targets.onnx.target import OnnxModel
from md_export.targets.onnx.weights import initializer

_ANY_SIZE: Final = 1 << 40
# From 21 on the exporter emits GroupNormalization, which onnxruntime's CPU provider expands into more
# and slower nodes and which mobile providers do not take.
OPSET: Final = 18


def part_weights(model: ir.Model) -> None:
    """Take parts of constants out of them, in place; all parts being used, the bytes stay as many.

        Conv(x, Gather(stack[4, out, in, k, k], 2)) → Conv(x, part[out, in, k, k])
        Conv(x, Split(whole[out, in, k, k])[0])     → Conv(x, part[out, in/2, k, k])

    The exporter leaves large constants unchanged; but only what is a constant can be stored otherwise.
    """
    fold_constants(model, input_size_limit=_ANY_SIZE, output_size_limit=_ANY_SIZE, should_fold=_looks_up)
    for node in list(model.graph):
        whole = node.inputs[0] if node.op_type == "Split" else None
        if whole is not None and whole.const_value is not None:
            _cut(model.graph, node, whole, whole.const_value.numpy())


def _looks_up(node: ir.Node) -> bool:
    """Whether a node looks up parts of a constant; rows by token, which are no constants, are not folded."""
    whole = node.inputs[0] if node.op_type == "Gather" else None
    return whole is not None and whole.is_initializer()


def _cut(graph: ir.Graph, node: ir.Node, whole: ir.Value, values: np.ndarray) -> None:
    """onnxscript folds no operator of several results."""
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    first = 0
    for number, part in enumerate(node.outputs):
        if part.shape is None:
            raise ValueError(f"{part.name} has no shape; export with static shapes")
        size = int(part.shape.numpy()[axis])
        cut = np.ascontiguousarray(np.take(values, range(first, first + size), axis))
        part.replace_all_uses_with(initializer(graph, f"{whole.name}.{number}", cut))
        first += size
    graph.remove(node, safe=True)
    if not whole.uses():
        del graph.initializers[whole.name or ""]


def lower(job: LoweringJob) -> OnnxModel:
    """Export the module, in float16 where the scheme computes in it, else in float32.

    Returns:
        A graph in memory that shares storage with the module, surface float32/int32 as in ``job``.

    Raises:
        ConversionError: the scheme is not supported, the exporter failed, or produced another surface than the job's.
    """
    check_scheme(job)
    module = half_copy(job.module) if job.scheme.activations == "float16" else job.module
    model = _export(module, job)
    part_weights(model)
    clean(model)
    name_regions(model.graph)
    check_surface(job, map(_spec, model.graph.inputs), map(_spec, model.graph.outputs))
    return OnnxModel(model)


def _export(module: nn.Module, job: LoweringJob) -> ir.Model:
    args = tuple(example_of(job).values())
    try:
        with quiet(), torch.no_grad():
            program = torch.onnx.export(
                module,
                args,
                input_names=[spec.name for spec in job.inputs],
                output_names=[spec.name for spec in job.outputs],
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise ConversionError(f"{job.component}: torch.onnx could not export it: {_first_line(error)}") from error
    if program is None:
        raise ConversionError(f"{job.component}: torch.onnx returned no program")
    return program.model


def _first_line(error: BaseException) -> str:
    # The exporter wraps the cause in pages of advice; the innermost exception says what happened.
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().partition("\n")[0]


def _spec(value: ir.Value) -> TensorSpec:
    """A size that is not fixed counts as 0, and so does a rank."""
    shape = value.shape.numpy() if value.shape is not None and value.shape.is_static() else (0,)
    return TensorSpec(value.name or "", tuple(map(int, shape)), "" if value.dtype is None else value.dtype.numpy().name)
