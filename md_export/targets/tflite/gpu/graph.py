"""The ops of a .tflite file in the order of execution, each with the torch module that it computes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from md_export.targets.tflite.flatbuffer import (
    DTYPES,
    operator_name,
    read_model,
    shape_of,
    signature_entry,
    weighted_ops,
    write_rewired,
)
from md_export.targets.tflite.names import END, modules_in

# Of a tensor that the GPU engine takes.
LARGEST_RANK: Final = 4
# Rows of a texture, each with one input value of a convolution, that WebGPU guarantees and many phones have.
LARGEST_TEXTURE: Final = 8192


@dataclass(frozen=True)
class GraphOp:
    """One op.

    Attributes:
        operator: ``CONV_2D``, ….
        module: path of the torch module; empty where no tensor of the op carries one.
        inputs, outputs: tensor names.
        shapes: of its inputs and outputs.
        shape: of its first output.
    """

    operator: str
    module: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    shape: tuple[int, ...]

    @property
    def rank(self) -> int:
        """The largest rank of a tensor that it reads or writes."""
        return max(len(shape) for shape in self.shapes)

    @property
    def is_wide(self) -> bool:
        """Whether it is a convolution whose weight ``[out, H, W, in]`` has more input values than a texture rows."""
        weight = self.shapes[1] if self.operator == "CONV_2D" and len(self.shapes) > 2 else ()
        return math.prod(weight[1:]) > LARGEST_TEXTURE


def graph_ops(path: Path) -> list[GraphOp]:
    """Read the first graph of a file.

    Raises:
        RuntimeFault: the file is no .tflite file.
    """
    return ops_of(read_model(path))


def ops_of(model: Any) -> list[GraphOp]:
    """Of the first graph of the ``ModelT`` that ``read_model`` gives."""
    graph = model.subgraphs[0]
    weighted = {op.output: op.module for op in weighted_ops(model)}
    return [_op(operator_name(model, operator), graph.tensors, operator, weighted) for operator in graph.operators]


def _op(name: str, tensors: Any, operator: Any, weighted: Mapping[str, str]) -> GraphOp:
    inputs = [tensors[index] for index in operator.inputs if index >= 0]
    outputs = [tensors[index] for index in operator.outputs]
    read, made = ([tensor.name.decode() for tensor in side] for side in (inputs, outputs))
    return GraphOp(
        operator=name,
        module=weighted.get(made[0]) or _module(made[0], *read),
        inputs=tuple(read),
        outputs=tuple(made),
        shapes=tuple(shape_of(tensor) for tensor in (*inputs, *outputs)),
        shape=shape_of(outputs[0]),
    )


def _module(output: str, *inputs: str) -> str:
    """From the output's name, else from an input's: what a graph returns is named after the artifact's output."""
    named = [name for name in (output, *inputs) if END in name]
    return modules_in(named[0])[0] if named else ""


def write_prefix(source: Path, count: int, path: Path) -> bool:
    """Write ``path``: the first ``count`` ops of ``source``, same inputs.

    Its outputs are the float32 tensors that those ops compute for the ops after them, all of them, so that
    no op before the cut is without use and what goes wrong before it shows.

    Returns:
        whether anything float32 crosses the cut; else no file is written.

    Raises:
        RuntimeFault: ``source`` is no .tflite file.
    """
    model = read_model(source)
    graph = model.subgraphs[0]
    crossing = _crossing(graph, count)
    if not crossing:
        return False
    graph.operators = graph.operators[:count]
    graph.outputs = crossing
    signature = model.signatureDefs[0]
    signature.outputs = [signature_entry(f"tensor_{index}", index) for index in crossing]
    write_rewired(model, path)
    return True


def _crossing(graph: Any, count: int) -> list[int]:
    made = {index for operator in graph.operators[:count] for index in operator.outputs}
    wanted = {index for operator in graph.operators[count:] for index in operator.inputs} | set(graph.outputs)
    return [int(index) for index in sorted(made & wanted) if DTYPES.get(graph.tensors[index].type) == "float32"]
