"""Observe the values inside a .tflite file in any runtime, by files with an output for each computed tensor.

Not every runtime can keep its inner tensors: XNNPACK cannot. A runtime must compute the outputs of a graph, so
:func:`write_observed` makes every tensor an output. :func:`write_alone` also makes each tensor an input of the ops
that read it: then every op runs on given values, and a difference between two runtimes comes from that op alone.
:func:`write_prefix` keeps the first ops, to find the op
that an engine computes wrongly.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from md_export.spec.tensors import Array
from md_export.targets.operations import Op
from md_export.targets.tflite.describe import ops_of
from md_export.targets.tflite.flatbuffer import DTYPES, read_model, signature_entry, write_rewired


@dataclass(frozen=True)
class Observed:
    """A tensor that a graph computes from its inputs.

    Attributes:
        key: name of the output in both files, and of the input in the second.
        op: the op that computes it.
        zero_point: the int8 value of 0; 0 for a float tensor.
    """

    key: str
    op: Op
    zero_point: int

    def centred(self, value: Array) -> Array:
        """Return a value without its zero point, in float64 if it has one, in steps of one instead of its scale."""
        return value.astype(np.float64) - self.zero_point if self.zero_point else value


def observed(source: Path) -> tuple[Observed, ...]:
    """Return the tensors that both files output, in order of execution.

    Raises:
        RuntimeFault: ``source`` is not a .tflite file.
    """
    model = read_model(source)
    graph = model.subgraphs[0]
    computed = _computed(graph)
    pairs = zip(graph.operators, ops_of(model), strict=True)
    return tuple(
        Observed(_key(index), op, _zero_point(graph.tensors[index]))
        for operator, op in pairs
        for index in operator.outputs
        if index in computed
    )


def write_observed(source: Path, path: Path) -> None:
    """Write ``path``: ``source`` with every computed tensor as an output."""
    model = read_model(source)
    _give_all(model)
    write_rewired(model, path)


def write_alone(source: Path, path: Path) -> tuple[str, ...]:
    """Write ``path``: every op of ``source``, each reading given values instead of computed ones.

    Returns:
        The names of its inputs in addition to those of ``source``: outputs of :func:`write_observed`.
    """
    model = read_model(source)
    graph, signature = model.subgraphs[0], model.signatureDefs[0]
    given: dict[int, int] = {}
    for tensor in _give_all(model):
        graph.tensors.append(copy.copy(graph.tensors[tensor]))
        given[tensor] = len(graph.tensors) - 1
    read = sorted({int(index) for operator in graph.operators for index in operator.inputs} & set(given))
    for operator in graph.operators:
        operator.inputs = [given.get(int(index), int(index)) for index in operator.inputs]
    graph.inputs = [*map(int, graph.inputs), *(given[tensor] for tensor in read)]
    signature.inputs += [signature_entry(_key(tensor), given[tensor]) for tensor in read]
    write_rewired(model, path)
    return tuple(map(_key, read))


def _give_all(model: Any) -> list[int]:
    graph, computed = model.subgraphs[0], _computed(model.subgraphs[0])
    graph.outputs = [int(index) for operator in graph.operators for index in operator.outputs if index in computed]
    model.signatureDefs[0].outputs = [signature_entry(_key(index), index) for index in graph.outputs]
    return list(graph.outputs)


def _computed(graph: Any) -> set[int]:
    """Return the tensors that depend on the graph's inputs, so without weights that are dequantized at every call."""
    found = {int(index) for index in graph.inputs}
    inputs = set(found)
    for operator in graph.operators:
        if found.intersection(int(index) for index in operator.inputs):
            found.update(int(index) for index in operator.outputs)
    return found - inputs


def _key(tensor: int) -> str:
    return f"tensor_{tensor}"


def _zero_point(tensor: Any) -> int:
    quantized = tensor.quantization
    points = None if quantized is None else quantized.zeroPoint
    return 0 if points is None or len(points) != 1 else int(points[0])


def write_prefix(source: Path, count: int, path: Path) -> bool:
    """Write ``path``: the first ``count`` ops of ``source``, with the same inputs.

    Its outputs are all float32 tensors that those ops compute for later ops, so that every op before the cut is used
    and its errors are visible.

    Returns:
        Whether a float32 tensor crosses the cut; if not, no file is written.

    Raises:
        RuntimeFault: ``source`` is not a .tflite file.
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
