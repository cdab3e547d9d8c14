"""Contents of a saved .tflite file: ops with their costs, stored bytes by type, weights that stayed float."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np

from md_export.errors import RuntimeFault, raised_as
from md_export.spec.tensors import Array
from md_export.targets.contract import Description
from md_export.targets.operations import (
    ExplorerGraph,
    Node,
    Op,
    OpCost,
    Value,
    Work,
    costs_of,
    multiplying,
    product_macs,
)
from md_export.targets.tflite import flatbuffer

_VIEWS: Final = ("RESHAPE", "EXPAND_DIMS", "SQUEEZE")
_MOVES: Final = ("TRANSPOSE", "SPACE_TO_DEPTH", "DEPTH_TO_SPACE", "SPACE_TO_BATCH_ND", "BATCH_TO_SPACE_ND")
_PASSING: Final = ("QUANTIZE", "DEQUANTIZE")
_LOOKUPS: Final = ("EMBEDDING_LOOKUP", "GATHER")
_PRODUCTS: Final = ("FULLY_CONNECTED", "BATCH_MATMUL")
# Shapes of an op's operands.
_Shapes = Sequence[tuple[int, ...]]


def describe(path: Path) -> Description:
    """Read a saved file without running it.

    Weights are those of fully connected layers, convolutions and embeddings, by module path; each buffer is counted
    once. The constants are checked for NaN and Inf, because arithmetic with dynamic int8 ranges turns a NaN into finite
    values that may look like a small error.

    Raises:
        RuntimeFault: the file is not a .tflite file.
    """
    model = flatbuffer.read_model(path)
    with raised_as(RuntimeFault, f"{path.name}: corrupted", flatbuffer.MALFORMED, then="; export it again"):
        return _describe(model)


def _describe(model: Any) -> Description:
    weights = flatbuffer.weighted_ops(model)
    operators = Counter(
        flatbuffer.operator_name(model, operator) for graph in model.subgraphs for operator in graph.operators
    )
    constants = _constants(model).values()
    return Description(
        stored=_bytes_by_dtype(model),
        ops=dict(sorted(operators.items())),
        float_weights=tuple(op.module for op in weights if op.dtype.startswith("float")),
        int8_weights=sum(op.dtype == "int8" for op in weights),
        int8_inputs=_int8_inputs(weights),
        not_finite=tuple(tensor.name.decode() for tensor in constants if not _finite(model, tensor)),
        notes=flatbuffer.read_notes(model),
    )


def _int8_inputs(weights: Sequence[flatbuffer.WeightedOp]) -> float:
    """Return the share of convolutions and linears with integer weights and int8 inputs; norms do not count."""
    taking = [op.takes for op in weights if op.dtype in ("int8", "int4") and op.operator != "EMBEDDING_LOOKUP"]
    return taking.count("int8") / max(1, len(taking))


def _constants(model: Any) -> dict[int, Any]:
    """Return one tensor for each buffer that is not empty."""
    tensors = (tensor for graph in model.subgraphs for tensor in graph.tensors)
    return {tensor.buffer: tensor for tensor in tensors if flatbuffer.data_of(model, tensor).size}


def _bytes_by_dtype(model: Any) -> dict[str, int]:
    totals: Counter[str] = Counter()
    for tensor in _constants(model).values():
        totals[flatbuffer.DTYPES.get(tensor.type, "other")] += flatbuffer.data_of(model, tensor).size
    return dict(sorted(totals.items()))


def _finite(model: Any, tensor: Any) -> bool:
    dtype = flatbuffer.DTYPES.get(tensor.type, "other")
    return not dtype.startswith("float") or bool(np.isfinite(flatbuffer.data_of(model, tensor).view(dtype)).all())


def costs(path: Path) -> tuple[OpCost, ...]:
    """Return the cost of each op of the main graph.

    Raises:
        RuntimeFault: the file is not a .tflite file.
    """
    model = flatbuffer.read_model(path)
    with raised_as(RuntimeFault, f"{path.name}: corrupted", flatbuffer.MALFORMED, then="; export it again"):
        graph = model.subgraphs[0]
        values = _values(model, graph)
        modules = {op.output: op.module for op in flatbuffer.weighted_ops(model)}
        return costs_of([_node(model, graph, operator, values, modules) for operator in graph.operators], values)


def explorer_graph(path: Path) -> ExplorerGraph:
    """Return the main graph with the ids of Model Explorer's adapter for .tflite files: the numbers of the ops.

    Source: ``direct_flatbuffer_to_json_graph_convert.cc`` of google-ai-edge/model-explorer (``node_ids``,
    ``GetSubgraphName``).

    Raises:
        RuntimeFault: the file is not a .tflite file.
    """
    model = flatbuffer.read_model(path)
    with raised_as(RuntimeFault, f"{path.name}: corrupted", flatbuffer.MALFORMED, then="; export it again"):
        graph = model.subgraphs[0]
        signatures = [item.signatureKey for item in model.signatureDefs or () if item.subgraphIndex == 0]
        name = next(filter(None, (graph.name, *signatures[:1])), b"main").decode()
        return ExplorerGraph(name, tuple(map(str, range(len(graph.operators)))), _values(model, graph))


def _values(model: Any, graph: Any) -> dict[str, Value]:
    """Return every tensor of a graph by its number."""
    sizes = [int(flatbuffer.data_of(model, tensor).size) for tensor in graph.tensors]
    return {str(number): _value(graph.tensors[number], size) for number, size in enumerate(sizes)}


def _value(tensor: Any, stored: int = 0) -> Value:
    return Value(
        tensor.name.decode(), flatbuffer.shape_of(tensor), flatbuffer.DTYPES.get(tensor.type, "other"), stored or None
    )


def _node(model: Any, graph: Any, operator: Any, values: Mapping[str, Value], modules: Mapping[str, str]) -> Node:
    kind = flatbuffer.operator_name(model, operator)
    inputs, outputs = (
        tuple(str(index) for index in indices if index >= 0) for indices in (operator.inputs, operator.outputs)
    )
    shapes = [values[name].sizes for name in inputs]
    macs = _MACS[kind](shapes, values[outputs[0]].sizes) if kind in _MACS else 0
    name = graph.tensors[operator.outputs[0]].name.decode()
    named = flatbuffer.modules_in(name) if flatbuffer.END in name else []
    return Node(
        kind,
        _work(kind, shapes),
        # The data operand is last; see _MACS.
        inputs[::-1] if kind == "TRANSPOSE_CONV" else inputs,
        outputs,
        macs,
        modules.get(name, named[-1] if named else ""),
        passing=kind in _PASSING,
        looks_up=kind in _LOOKUPS,
    )


def _work(kind: str, shapes: _Shapes) -> Work:
    if kind in _PRODUCTS:
        return "matrix product"
    if kind in _MACS:
        return multiplying(math.prod(shapes[1][1:3]))
    return "view" if kind in _VIEWS else "layout move" if kind in _MOVES else "other"


_MACS: Final[Mapping[str, Callable[[_Shapes, tuple[int, ...]], int]]] = {
    # Weights are [out, height, width, in], and [1, height, width, channels] for a depthwise convolution.
    "CONV_2D": lambda shapes, out: math.prod(out) * math.prod(shapes[1][1:]),
    "DEPTHWISE_CONV_2D": lambda shapes, out: math.prod(out) * math.prod(shapes[1][1:3]),
    # Operands: the shape of the output, weights [out, height, width, in], values.
    "TRANSPOSE_CONV": lambda shapes, _: math.prod(shapes[2]) * math.prod(shapes[1][:3]),
    "FULLY_CONNECTED": lambda shapes, out: math.prod(out) * shapes[1][-1],
    "BATCH_MATMUL": lambda shapes, out: product_macs(shapes[0], out),
}


def graph_ops(path: Path) -> list[Op]:
    """Read the first graph of a file.

    Raises:
        RuntimeFault: the file is not a .tflite file.
    """
    return ops_of(flatbuffer.read_model(path))


def ops_of(model: Any) -> list[Op]:
    """Return the operations of the first graph of ``read_model``'s ``ModelT``, with constants among the values read."""
    graph = model.subgraphs[0]
    kinds = [flatbuffer.kind_of(model, operator) for operator in graph.operators]
    context = _Context(
        model,
        {op.output: op for op in flatbuffer.weighted_ops(model)},
        _held(model, graph, kinds),
        _sources(graph, kinds),
        _readers(graph, kinds),
        frozenset(graph.outputs),
    )
    return [_op(kind, graph.tensors, operator, context) for kind, operator in zip(kinds, graph.operators, strict=True)]


@dataclass(frozen=True)
class _Context:
    """Facts about a graph that an operation does not store, by tensor number.

    Attributes:
        weighted: operations with a stored weight, by the name of their output.
        held: the stored tensor of each tensor that is constant.
        sources, readers: kinds of operations before and after each tensor; see ``after``, ``read_by`` of :class:`Op`.
        outputs: outputs of the graph.
    """

    model: Any
    weighted: Mapping[str, flatbuffer.WeightedOp]
    held: Mapping[int, Any]
    sources: Mapping[int, frozenset[str]]
    readers: Mapping[int, frozenset[str]]
    outputs: frozenset[int]


def _held(model: Any, graph: Any, kinds: Sequence[str]) -> dict[int, Any]:
    """Return the constants, also after an operation that decodes them to floats, which runtimes execute once."""
    held = {number: tensor for number, tensor in enumerate(graph.tensors) if flatbuffer.data_of(model, tensor).size}
    for kind, operator in zip(kinds, graph.operators, strict=True):
        if kind == "DEQUANTIZE" and operator.inputs[0] in held:
            held[operator.outputs[0]] = held[operator.inputs[0]]
    return held


def _sources(graph: Any, kinds: Sequence[str]) -> dict[int, frozenset[str]]:
    found: dict[int, frozenset[str]] = {}
    for kind, operator in zip(kinds, graph.operators, strict=True):
        before = (found.get(number, frozenset()) for number in operator.inputs if kind not in _MACS)
        found |= dict.fromkeys(operator.outputs, frozenset({kind}).union(*before))
    return found


def _readers(graph: Any, kinds: Sequence[str]) -> dict[int, frozenset[str]]:
    found: dict[int, frozenset[str]] = {}
    for kind, operator in zip(kinds, graph.operators, strict=True):
        found |= {number: found.get(number, frozenset()) | {kind} for number in operator.inputs}
    return found


def _op(kind: str, tensors: Any, operator: Any, context: _Context) -> Op:
    numbers = [number for number in operator.inputs if number >= 0]
    sizes = {
        number: int(flatbuffer.data_of(context.model, context.held[number]).size)
        for number in numbers
        if number in context.held
    }
    reads = tuple(_value(tensors[number], sizes.get(number, 0)) for number in numbers)
    writes = tuple(_value(tensors[number]) for number in operator.outputs)
    weight = context.weighted.get(writes[0].name)
    none = frozenset[str]()
    return Op(
        kind=kind,
        module=(weight.module if weight else "") or _module(writes[0].name, *(value.name for value in reads)),
        reads=reads,
        writes=writes,
        stored=weight.dtype if weight else "",
        bytes=sum(map(_bytes, (*reads, *writes))),
        constants=_constants_of(kind, operator, context),
        after=none.union(*(context.sources.get(number, none) for number in numbers)),
        read_by=none.union(*(context.readers.get(number, none) for number in operator.outputs)),
        returned=not context.outputs.isdisjoint(operator.outputs),
    )


def _constants_of(kind: str, operator: Any, context: _Context) -> dict[str, Callable[[], Array]]:
    """Return the constant floats by operand position, and a product's flags by MIL's names."""
    floats: dict[str, Callable[[], Array]] = {
        str(place): partial(_decoded, context.model, context.held[number])
        for place, number in enumerate(operator.inputs)
        if number in context.held and flatbuffer.DTYPES.get(context.held[number].type, "").startswith("float")
    }
    if kind != "BATCH_MATMUL" or operator.builtinOptions is None:
        return floats
    flags = operator.builtinOptions.adjX, operator.builtinOptions.adjY
    return floats | {f"transpose_{name}": partial(np.asarray, flag) for name, flag in zip("xy", flags, strict=True)}


def _decoded(model: Any, tensor: Any) -> Array:
    return flatbuffer.decode(model, tensor).values


def _bytes(value: Value) -> int:
    """Return the bytes of a value in float16, with channels padded to a multiple of four, like in the GPU engine."""
    *outer, channels = (size or 0 for size in value.shape or (0,))
    return 2 * prod(outer) * -(-channels // 4) * 4


def _module(output: str, *inputs: str) -> str:
    """Return the module in the output's name, else in an input's, because a graph's outputs have other names."""
    named = [name for name in (output, *inputs) if flatbuffer.END in name]
    return flatbuffer.modules_in(named[0])[0] if named else ""
