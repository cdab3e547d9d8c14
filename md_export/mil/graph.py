"""A function of an ML program as plain data, scheduled for execution."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from md_export.errors import RuntimeFault
from md_export.mil.dtypes import TensorType, ValueType, parse_type
from md_export.mil.values import Value

# Spelling of an opset in a program → its number; CoreML5 came with iOS15.
_OPSET_PREFIX = "CoreML"
OLDEST_OPSET = 5
# Ops whose result's type comes from a parameter or from one operand among several, not from the inputs at large.
_CHOOSE_THEIR_TYPE = frozenset({"cast", "quantize", "dequantize", "fill", "fill_like", "one_hot", "range_1d"})


@dataclass(frozen=True)
class Ref:
    """A use of a named value."""

    name: str


@dataclass(frozen=True)
class Declared:
    """A named value with its declared type."""

    name: str
    type: ValueType


@dataclass(frozen=True)
class Op:
    """One operation; every argument is a tuple because some take several values."""

    kind: str
    args: dict[str, tuple[Ref | Value, ...]]
    outputs: tuple[Declared, ...]

    @property
    def refs(self) -> Iterator[str]:
        """Names of the values this op reads."""
        return (item.name for group in self.args.values() for item in group if isinstance(item, Ref))

    def __str__(self) -> str:
        names = ", ".join(out.name for out in self.outputs) or "no output"
        return f"{self.kind} → {names}"


@dataclass(frozen=True)
class Graph:
    """A straight-line program.

    Attributes:
        opset: number of the function's opset, 5 (iOS15) to 8 (iOS18).
        inputs: the function's parameters.
        outputs: names of the results.
        constants: the values of ``const`` ops; those in the weight file are views of the mapping.
        ops: in execution order, each ``constexpr_*`` right before its first reader, so that few decompressed
            weights are alive at a time.
        dead_after: names nobody reads after the op of that position.
        types: declared type of every name.
    """

    opset: int
    inputs: tuple[Declared, ...]
    outputs: tuple[str, ...]
    constants: dict[str, Value]
    ops: tuple[Op, ...]
    dead_after: tuple[tuple[str, ...], ...]
    types: dict[str, ValueType]


def parse_function(function: Any, read: Callable[[Any], Value]) -> Graph:
    """A ``MIL_pb2.Function`` as a :class:`Graph`.

    Args:
        function: the message.
        read: decodes a ``MIL_pb2.Value``.

    Raises:
        RuntimeFault: an unknown opset or element type, a constant that cannot be decoded.
    """
    block = function.block_specializations[function.opset]
    inputs = tuple(_declared(item) for item in function.inputs)
    types = {item.name: item.type for item in inputs}
    constants: dict[str, Value] = {}
    ops: list[Op] = []
    for proto in block.operations:
        outputs = tuple(_declared(item) for item in proto.outputs)
        types.update((item.name, item.type) for item in outputs)
        if proto.type == "const":
            constants[outputs[0].name] = read(proto.attributes["val"])
        else:
            ops.append(Op(proto.type, _arguments(proto, read), outputs))
    results = tuple(block.outputs)
    scheduled = tuple(_schedule(ops, results))
    return Graph(
        _opset(function.opset), inputs, results, constants, scheduled, _dead_after(scheduled, results, constants), types
    )


def _opset(name: str) -> int:
    number = name.removeprefix(_OPSET_PREFIX)
    if not number.isdigit() or int(number) < OLDEST_OPSET:
        raise RuntimeFault(
            f"the ML program uses opset {name!r}; this runtime knows CoreML{OLDEST_OPSET} (iOS15) and later"
        )
    return int(number)


def _declared(proto: Any) -> Declared:
    return Declared(proto.name, parse_type(proto.type))


def _arguments(proto: Any, read: Callable[[Any], Value]) -> dict[str, tuple[Ref | Value, ...]]:
    if proto.blocks:
        raise RuntimeFault(
            f"op {proto.type} → {proto.outputs[0].name} has nested blocks: control flow is outside scope"
        )
    args: dict[str, tuple[Ref | Value, ...]] = {}
    for name, argument in proto.inputs.items():
        args[name] = tuple(
            Ref(item.name) if item.WhichOneof("binding") == "name" else read(item.value) for item in argument.arguments
        )
    # Up to iOS17 the constexpr ops carry their operands as attributes.
    if proto.type.startswith("constexpr_"):
        for name, value in proto.attributes.items():
            if name != "name":
                args[name] = (read(value),)
    return args


def _schedule(ops: Iterable[Op], results: tuple[str, ...]) -> Iterator[Op]:
    waiting: dict[str, Op] = {}

    def release(name: str) -> Iterator[Op]:
        op = waiting.get(name)
        if op is None:
            return
        for out in op.outputs:
            waiting.pop(out.name, None)
        for ref in op.refs:
            yield from release(ref)
        yield op

    for op in ops:
        if op.kind.startswith("constexpr_"):
            waiting.update((out.name, op) for out in op.outputs)
            continue
        for ref in op.refs:
            yield from release(ref)
        yield op
    for name in results:
        yield from release(name)


def _dead_after(
    ops: tuple[Op, ...], results: tuple[str, ...], constants: dict[str, Value]
) -> tuple[tuple[str, ...], ...]:
    last: dict[str, int] = {}
    for position, op in enumerate(ops):
        for out in op.outputs:
            last[out.name] = position
        for name in op.refs:
            last[name] = position
    dead: list[list[str]] = [[] for _ in ops]
    for name, position in last.items():
        if name not in results and name not in constants:
            dead[position].append(name)
    return tuple(tuple(names) for names in dead)


def check_widths(op: Op, types: Mapping[str, ValueType]) -> None:
    """A floating-point output must be as wide as some floating-point operand.

    Kernels compute in float32, so nothing else would notice an output declared float32 after a float16 op.

    Raises:
        RuntimeFault: names the op, the output and both types.
    """
    if op.kind in _CHOOSE_THEIR_TYPE or op.kind.startswith("constexpr_"):
        return
    operands = [types.get(name) for name in op.refs]
    widths = {t.dtype.name for t in operands if isinstance(t, TensorType) and t.dtype.kind == "float"}
    for out in op.outputs:
        declared = out.type
        if not isinstance(declared, TensorType) or declared.dtype.kind != "float" or not widths:
            continue
        if declared.dtype.name not in widths:
            operands_text = ", ".join(sorted(widths))
            raise RuntimeFault(f"{op.kind} declares {out.name} as {declared}, its operands are {operands_text}")


def check_output(op: Op, declared: Declared, result: Any) -> torch.Tensor:
    """``result`` if it is what the program declares for this output.

    Raises:
        RuntimeFault: names the op, its type, the output, what was declared and what was computed.
    """
    where = f"{op.kind} → {declared.name}"
    if not isinstance(declared.type, TensorType):
        raise RuntimeFault(f"{where} is declared {declared.type}, which is outside this runtime's scope")
    if not isinstance(result, torch.Tensor):
        raise RuntimeFault(f"{where}: the op gave {type(result).__name__}, the program declares {declared.type}")
    if _kind(result) != declared.type.dtype.kind or not declared.type.accepts(tuple(result.shape)):
        computed = f"{_kind(result)}{list(result.shape)}"
        raise RuntimeFault(f"{where}: the program declares {declared.type}, the op computes {computed}")
    return result


def _kind(tensor: torch.Tensor) -> str:
    if tensor.dtype == torch.bool:
        return "bool"
    return "float" if tensor.is_floating_point() else "int"
