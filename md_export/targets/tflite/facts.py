"""The operations of a .tflite file in the order of execution, each with the torch module that it computes."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

from md_export.targets.lint.op import Op, Value
from md_export.targets.tflite.flatbuffer import DTYPES, WeightedOp, operator_name, read_model, shape_of, weighted_ops
from md_export.targets.tflite.names import END, modules_in


def graph_ops(path: Path) -> list[Op]:
    """Read the first graph of a file.

    Raises:
        RuntimeFault: the file is no .tflite file.
    """
    return ops_of(read_model(path))


def ops_of(model: Any) -> list[Op]:
    """The operations of the first graph of the ``ModelT`` that ``read_model`` gives; they read constants as values."""
    graph = model.subgraphs[0]
    weighted = {op.output: op for op in weighted_ops(model)}
    return [_op(operator_name(model, operator), graph.tensors, operator, weighted) for operator in graph.operators]


def _op(kind: str, tensors: Any, operator: Any, weighted: dict[str, WeightedOp]) -> Op:
    reads = tuple(_value(tensors[index]) for index in operator.inputs if index >= 0)
    writes = tuple(_value(tensors[index]) for index in operator.outputs)
    weight = weighted.get(writes[0].name)
    return Op(
        kind=kind,
        module=(weight.module if weight else "") or _module(writes[0].name, *(value.name for value in reads)),
        reads=reads,
        writes=writes,
        stored=weight.dtype if weight else "",
        bytes=sum(map(_bytes, (*reads, *writes))),
    )


def _value(tensor: Any) -> Value:
    return Value(tensor.name.decode(), shape_of(tensor), DTYPES.get(tensor.type, "other"))


def _bytes(value: Value) -> int:
    """In float16, channels by fours as the GPU engine stores them."""
    *outer, channels = (size or 0 for size in value.shape or (0,))
    return 2 * prod(outer) * -(-channels // 4) * 4


def _module(output: str, *inputs: str) -> str:
    """From the output's name, else from an input's: what a graph returns is named after the artifact's output."""
    named = [name for name in (output, *inputs) if END in name]
    return modules_in(named[0])[0] if named else ""
