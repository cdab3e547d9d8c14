"""Lower a torch module to an ONNX graph in float32 or float16, with static shapes and opset 18."""

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
from md_export.targets.onnx.exporter import OPSET, shortcuts
from md_export.targets.onnx.quantize import check_scheme
from md_export.targets.onnx.target import OnnxModel
from md_export.targets.onnx.weights import initializer

_ANY_SIZE: Final = 1 << 40


def part_weights(model: ir.Model) -> None:
    """Replace look-ups in constants and splits of constants by separate constants, in place; the bytes do not grow.

        Conv(x, Gather(stack[4, out, in, k, k], 2)) → Conv(x, part[out, in, k, k])
        Conv(x, Split(whole[out, in, k, k])[0])     → Conv(x, part[out, in/2, k, k])

    The exporter does not fold large constants, but only a constant can be quantized.
    """
    fold_constants(model, input_size_limit=_ANY_SIZE, output_size_limit=_ANY_SIZE, should_fold=_looks_up)
    for node in list(model.graph):
        whole = node.inputs[0] if node.op_type == "Split" else None
        if whole is not None and whole.const_value is not None:
            _cut(model.graph, node, whole, whole.const_value.numpy())


def _looks_up(node: ir.Node) -> bool:
    """Whether a node looks up a fixed part of a constant; a look-up by token ids is not folded."""
    whole = node.inputs[0] if node.op_type == "Gather" else None
    return whole is not None and whole.is_initializer()


def _cut(graph: ir.Graph, node: ir.Node, whole: ir.Value, values: np.ndarray) -> None:
    """Replace a Split of a constant by its parts; onnxscript does not fold operators with several results."""
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
    """Export the module in float16 if the scheme computes in float16, else in float32.

    Returns:
        A graph in memory that shares storage with the module; inputs and outputs float32/int32 as in ``job``.

    Raises:
        ConversionError: the scheme is not supported, the exporter failed, or inputs and outputs differ from the job's.
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
        with quiet(), shortcuts(), torch.no_grad():
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
    # The exporter wraps the cause in pages of advice; the innermost exception has the cause.
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().partition("\n")[0]


def _spec(value: ir.Value) -> TensorSpec:
    """Return the spec of a value; an unknown size counts as 0, an unknown rank as no axes."""
    shape = value.shape.numpy() if value.shape is not None and value.shape.is_static() else (0,)
    return TensorSpec(value.name or "", tuple(map(int, shape)), "" if value.dtype is None else value.dtype.numpy().name)
