"""Files of a few ops, written by hand: :mod:`one_op` for graphs in which it matters what stands beside an op."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from md_export.spec.tensors import Array
from md_export.targets.tflite.flatbuffer import IDENTIFIER
from one_op import give_options, tensor_of

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Node:
    """An op: its kind, the names of what it reads, and the name and shape of what it gives."""

    kind: str
    reads: Sequence[str]
    name: str
    shape: Shape
    options: Mapping[str, object] = field(default_factory=dict)


def write_graph(
    path: Path, given: Mapping[str, Shape | Array], nodes: Sequence[Node], outputs: Sequence[str] = ()
) -> Path:
    """Write a graph of ``nodes``.

    Args:
        path: the file.
        given: shapes of inputs and values of constants.
        nodes: ops in order of execution.
        outputs: names of what the graph returns; what the last op gives by default.
    """
    model, graph = schema.ModelT(), schema.SubGraphT()
    model.version, model.subgraphs, model.buffers = 3, [graph], [schema.BufferT()]
    model.operatorCodes, graph.operators, graph.tensors = [], [], []
    places: dict[str, int] = {}

    def add(name: str, shape: Shape, dtype: str, buffer: int = 0) -> None:
        places[name] = len(graph.tensors)
        graph.tensors.append(tensor_of(f"{name};", shape, dtype, buffer))

    for name, value in given.items():
        if isinstance(value, tuple):
            add(name, value, "float32")
            continue
        stored = schema.BufferT()
        stored.data = np.frombuffer(value.tobytes(), np.uint8)
        model.buffers.append(stored)
        add(name, value.shape, value.dtype.name, len(model.buffers) - 1)
    for node in nodes:
        add(node.name, node.shape, "float32")
        graph.operators.append(_operator(model, node, places))
    graph.inputs = [places[name] for name, value in given.items() if isinstance(value, tuple)]
    graph.outputs = [places[name] for name in outputs or (nodes[-1].name,)]
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), file_identifier=IDENTIFIER)
    path.write_bytes(builder.Output())
    return path


def _operator(model: Any, node: Node, places: Mapping[str, int]) -> Any:
    code, operator = schema.OperatorCodeT(), schema.OperatorT()
    code.builtinCode = getattr(schema.BuiltinOperator, node.kind)
    code.deprecatedBuiltinCode, code.version = min(code.builtinCode, 127), 1
    model.operatorCodes.append(code)
    operator.opcodeIndex = len(model.operatorCodes) - 1
    operator.inputs, operator.outputs = [places[name] for name in node.reads], [places[node.name]]
    give_options(operator, node.kind, node.options)
    return operator
