"""Ranges of a float graph's values on calibration inputs, a part of the graph at a time.

Consecutive nodes are made a graph that reads the model's own weights in memory. So neither all weights nor all values
are held at once, and every node is computed once for each case.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any, Final

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import TensorProto, ValueInfoProto, helper
from onnxruntime.quantization import CalibrationMethod, StaticQuantConfig
from onnxruntime.quantization.calibrate import TensorsData

from md_export.spec.tensors import Array
from md_export.targets.contract import LoweringJob
from md_export.targets.observers import ObserverTable, portions
from md_export.targets.onnx.save import session_options
from md_export.targets.onnx.wire import release, with_shapes

# Bytes that a part's weights and observed values may take together, and what the cases in progress keep between parts.
_HELD: Final = 1 << 29
_FLOAT_OUTPUTS: Final = "OpTypesToExcludeOutputQuantization"


@dataclass(frozen=True)
class Part:
    """Consecutive nodes as a graph.

    Attributes:
        graph: its weights are placeholders.
        weights: their names, which are the model's.
        given: values of earlier parts, or inputs of the model, that it reads.
        made: values that it gives: observed ones, and what later parts read.
        last: values that no later part reads.
        held: bytes of the values that later parts read.
    """

    graph: onnx.ModelProto
    weights: tuple[str, ...]
    given: tuple[str, ...]
    made: tuple[str, ...]
    last: frozenset[str]
    held: int


def measure_ranges(model: ir.Model, config: StaticQuantConfig, job: LoweringJob) -> TensorsData:
    """Range of each value that the quantizer will ask for, by the job's rule.

    Raises:
        ValueError: an activation holds NaN or Inf.
    """
    proto = with_shapes(model)
    observed, seen = observed_values(proto, config), ObserverTable(job.ranges, symmetric=False)
    parts = list(split(proto, observed, _HELD))
    held = max(part.held for part in parts)
    for cases in portions(((dict(case), held) for case in job.calibration), _HELD):
        for name in observed & cases[0].keys():
            for values in cases:
                seen.add(name, values[name])
        for part in parts:
            _observe(part, model, cases, observed, seen)
    floats = {name: tuple(np.array(end, np.float32) for end in ends) for name, ends in seen.ranges().items()}
    return TensorsData(CalibrationMethod.MinMax, floats)


def observed_values(proto: onnx.ModelProto, config: StaticQuantConfig) -> set[str]:
    """Names of the float values that the quantizer needs a range of: what its nodes take and give, constants aside."""
    constants = {tensor.name for tensor in proto.graph.initializer}
    floats = {name for name, info in _infos(proto).items() if info.type.tensor_type.elem_type == TensorProto.FLOAT}
    excluded, names = set(config.nodes_to_exclude), set[str]()
    for node in proto.graph.node:
        if node.op_type in config.op_types_to_quantize and node.name not in excluded:
            names.update(node.input)
            if node.op_type not in config.extra_options.get(_FLOAT_OUTPUTS, ()):
                names.update(node.output)
    return names & floats - constants


def _infos(proto: onnx.ModelProto) -> dict[str, ValueInfoProto]:
    graph = proto.graph
    return {info.name: info for infos in (graph.value_info, graph.output, graph.input) for info in infos}


def _size(info: ValueInfoProto) -> int:
    """Bytes of one value; an element is taken for 4."""
    return int(4 * prod(axis.dim_value for axis in info.type.tensor_type.shape.dim))


def split(proto: onnx.ModelProto, observed: Collection[str], most_bytes: int) -> Iterator[Part]:
    """Cut a graph into parts whose weights and observed values together are no larger, or which are a single node."""
    infos, weights = _infos(proto), {tensor.name: tensor for tensor in proto.graph.initializer}
    nodes = list(proto.graph.node)
    last = {name: place for place, node in enumerate(nodes) for name in node.input}
    sizes = [
        sum(4 * prod(weights[name].dims) for name in node.input if name in weights)
        + sum(_size(infos[name]) for name in node.output if name in observed)
        for node in nodes
    ]
    end, alive = 0, set[str]()
    for own in portions(zip(nodes, sizes, strict=True), most_bytes):
        end += len(own)
        outputs = {name: None for node in own for name in node.output}
        read = dict.fromkeys(name for node in own for name in node.input if name and name not in outputs)
        given = tuple(name for name in read if name not in weights)
        made = tuple(name for name in outputs if name in observed or last.get(name, 0) >= end)
        alive = {name for name in alive.union(given, made) if last.get(name, 0) >= end}
        if not made:
            continue
        graph = helper.make_graph(
            own,
            "part",
            [infos[name] for name in given],
            [infos[name] for name in made],
            [weights[name] for name in read if name in weights],
        )
        yield Part(
            helper.make_model(graph, opset_imports=proto.opset_import, ir_version=proto.ir_version),
            tuple(name for name in read if name in weights and weights[name].data_location == TensorProto.EXTERNAL),
            given,
            made,
            frozenset(name for name in (*given, *made) if last.get(name, 0) < end),
            sum(_size(infos[name]) for name in alive),
        )


def _observe(
    part: Part, model: ir.Model, cases: list[dict[str, Array]], observed: Collection[str], seen: ObserverTable
) -> None:
    """Run a part on each case, whose values go in and out of ``cases``."""
    weights = (model.graph.initializers[name].const_value for name in part.weights)
    tensors = [tensor for tensor in weights if tensor is not None]
    held = [ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(tensor.numpy())) for tensor in tensors]
    options = session_options(optimized=False)
    options.add_external_initializers(list(part.weights), held)
    session: Any = ort.InferenceSession(part.graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    for values in cases:
        made = session.run(part.made, {name: values[name] for name in part.given})
        for name, array in zip(part.made, made, strict=True):
            if name in observed:
                seen.add(name, array)
        values.update(zip(part.made, made, strict=True))
        del made
        for name in part.last:
            del values[name]
    del session
    for tensor in tensors:
        release(tensor)
