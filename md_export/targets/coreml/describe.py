"""Contents of a saved package: operations with their costs, and bytes of weights by stored type."""

from __future__ import annotations

import collections
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np

from md_export.errors import ArtifactError, RuntimeFault, raised_as
from md_export.mil.dtypes import TensorType, parse_type
from md_export.mil.loading import Package
from md_export.mil.values import BlobFile
from md_export.targets.contract import Description, notes_among
from md_export.targets.coreml.package import (
    KEY,
    PACKED,
    WEIGHTS,
    Operand,
    blobs_of,
    main_operations,
    operands_of,
    read_modules,
    read_spec,
)
from md_export.targets.coreml.weights import float_weights
from md_export.targets.operations import Node, OpCost, Value, Work, costs_of, einsum_macs, multiplying, product_macs

# Names of types in numpy and recipes, for types with another name in MIL.
_NAMES: Final = {"fp16": "float16", "fp32": "float32"}
_MULTIPLIES: Final = ("conv", "linear")
_VIEWS: Final = ("reshape", "expand_dims", "squeeze", "flatten2d", "identity")
_MOVES: Final = ("transpose", "depth_to_space", "space_to_depth", "pixel_shuffle", "pixel_unshuffle", "reverse")
_PASSING: Final = ("quantize", "dequantize")
_LOOKUPS: Final = ("gather", "gather_along_axis", "gather_nd")
_BLOB: Final = "blobFileValue"
# Shapes of the values in each role.
_Shapes = Mapping[str, list[tuple[int, ...]]]


def describe(path: Path) -> Description:
    """Read a package without running it.

    Types come from the records of the weight file, not from the program's declarations; for indices or masks that are
    packed into bytes (systems before iOS 18), from their number of bytes. Constants are not counted as operations;
    weights are the constants of rank ≥ 2 of a convolution, linear, matmul or gather.

    Raises:
        ArtifactError: the package cannot be read, or its weight file does not belong to the program.
    """
    spec = read_spec(path)
    operations, pairs = main_operations(spec), spec.description.metadata.userDefined
    blobs = _blobs(path / WEIGHTS, operations)
    stored: collections.Counter[str] = collections.Counter()
    for blob in blobs:
        stored[blob.dtype] += blob.size
    histogram = collections.Counter(op.type for op in operations if op.type != "const")
    return Description(
        stored=dict(sorted(stored.items())),
        ops=dict(sorted(histogram.items())),
        float_weights=tuple(sorted(float_weights(spec))),
        int8_weights=sum(blob.dtype == "int8" for blob in blobs),
        not_finite=tuple(blob.name for blob in blobs if not blob.finite),
        int8_inputs=_int8_inputs(operations),
        notes=notes_among({name: value for name, value in pairs.items() if name != KEY}),
    )


def _int8_inputs(operations: Any) -> float:
    """Return the share of the convolutions and linears with a just dequantized input."""
    made_by = {op.outputs[0].name: op.type for op in operations if op.outputs}
    inputs = [op.inputs["x"].arguments[0].name for op in operations if op.type in _MULTIPLIES]
    taking = [name for name in inputs if made_by.get(name) == "dequantize"]
    return len(taking) / max(1, len(inputs))


@dataclass(frozen=True)
class _Blob:
    """One record of the weight file; ``size`` in bytes."""

    name: str
    dtype: str
    size: int
    finite: bool


def _blobs(file: Path, operations: Any) -> list[_Blob]:
    """Return the records that operations read, each once, in the order of the file."""
    uses = {offset: (op, role) for op in operations for role, offset in blobs_of(op)}
    if not uses:
        return []
    try:
        weights = BlobFile(file)
    except RuntimeFault as error:
        raise ArtifactError(str(error)) from error
    return [_blob(weights, offset, *uses[offset]) for offset in sorted(uses)]


def _blob(weights: BlobFile, offset: int, op: Any, role: str) -> _Blob:
    try:
        record = weights.record(offset)
    except RuntimeFault as error:
        raise ArtifactError(
            f"weight.bin has no weight at byte {offset}; the package was altered, export it again"
        ) from error
    dtype = _NAMES.get(record.dtype, record.dtype)
    if dtype == "uint8" and role in PACKED and op.type.startswith("constexpr_"):
        # Indices into a palette, or a mask: its bytes hold as many elements as the weight has.
        elements = prod(dimension.constant.size for dimension in op.outputs[0].type.tensorType.dimensions)
        dtype = f"uint{8 * record.nbytes // elements}" if elements else dtype
    finite = not dtype.startswith("float") or bool(np.isfinite(weights.raw(record).view(dtype)).all())
    return _Blob(op.outputs[0].name, dtype, record.nbytes, finite)


def costs(path: Path) -> tuple[OpCost, ...]:
    """Return the cost of each operation of the program's main function.

    Raises:
        ArtifactError: the package cannot be read.
    """
    with raised_as(ArtifactError, f"{path.name}", (RuntimeFault, KeyError, IndexError), then="; export it again"):
        package = Package(path)
        function = package.function()
        block = function.block_specializations[function.opset]
        values = dict(_values(package, function, block))
        modules = read_modules(package.spec)
        texts = {op.outputs[0].name: op.attributes["val"] for op in block.operations if op.type == "const"}
        executed = [op for op in block.operations if op.type != "const"]
        return costs_of([_node(op, values, modules, texts) for op in executed], values)


def _values(package: Package, function: Any, block: Any) -> Iterator[tuple[str, Value]]:
    for given in function.inputs:
        yield given.name, value_of(given)
    for op in block.operations:
        constant = _stored(package, op.attributes["val"]) if op.type == "const" else None
        for output in op.outputs:
            yield output.name, value_of(output, constant)
        for operand in _operands(op):
            if operand.given is not None:
                yield operand.name, value_of(operand.given, _stored(package, operand.given), operand.name)


def _operands(op: Any) -> Iterator[Operand]:
    """Yield the operands with their names or roles; attributes count only in operations that decode weights."""
    for operand in operands_of(op):
        if operand.role in op.inputs or (op.type.startswith("constexpr_") and operand.role != "name"):
            name = operand.name or f"{op.outputs[0].name}/{operand.role}/{operand.place}"
            yield operand._replace(name=name)


def value_of(proto: Any, stored: int | None = None, name: str = "") -> Value:
    """Return name, shape and dtype of a value; lists and states have only a name, unknown rank is one size."""
    declared = parse_type(proto.type)
    if not isinstance(declared, TensorType):
        return Value(name or proto.name, (), stored=stored)
    kind = declared.dtype
    dtype = f"float{kind.bits}" if kind.kind == "float" else kind.name
    return Value(name or proto.name, (None,) if declared.shape is None else declared.shape, dtype, stored)


def _stored(package: Package, value: Any) -> int:
    """Return the bytes of a constant in the weight file; a small one in the program itself counts as written there."""
    if value.WhichOneof("value") == _BLOB:
        return int(package.weights(value.blobFileValue.fileName).record(value.blobFileValue.offset).nbytes)
    return int(value.immediateValue.ByteSize())


def _node(op: Any, values: Mapping[str, Value], modules: Mapping[str, str], texts: Mapping[str, Any]) -> Node:
    operands = sorted(_operands(op), key=_order)
    outputs = tuple(output.name for output in op.outputs)
    shapes: dict[str, list[tuple[int, ...]]] = {}
    for operand in operands:
        if operand.name in values:
            shapes.setdefault(operand.role, []).append(values[operand.name].sizes)
    out = values[outputs[0]].sizes if outputs else ()
    macs = _MACS[op.type](shapes, out) if op.type in _MACS else 0
    if op.type == "einsum":
        macs = einsum_macs(_equation(operands, texts), shapes["values"])
    return Node(
        op.type,
        _work(op.type, shapes),
        tuple(operand.name for operand in operands),
        outputs,
        macs,
        modules.get(outputs[0], "") if outputs else "",
        passing=op.type.startswith("constexpr_") or op.type in _PASSING,
        looks_up=op.type in _LOOKUPS,
    )


def _equation(operands: Iterable[Operand], texts: Mapping[str, Any]) -> str:
    (operand,) = (operand for operand in operands if operand.role == "equation")
    written = texts[operand.name] if operand.given is None else operand.given
    return str(written.immediateValue.tensor.strings.values[0])


def _order(operand: Operand) -> tuple[bool, str]:
    """Sort key that puts the data operands of an operation first, for any order in the program."""
    return operand.role not in ("x", "input", "query", "values"), operand.role


def _work(kind: str, shapes: _Shapes) -> Work:
    if kind in ("conv", "conv_transpose"):
        return multiplying(math.prod(shapes["weight"][0][2:]))
    if kind in _MACS or kind == "einsum":
        return "matrix product"
    return "view" if kind in _VIEWS else "layout move" if kind in _MOVES else "other"


def _attention(shapes: _Shapes, out: tuple[int, ...]) -> int:
    query, keys = shapes["query"][0], shapes["key"][0][-2]
    return (math.prod(query) + math.prod(out)) * keys


_MACS: Final[Mapping[str, Callable[[_Shapes, tuple[int, ...]], int]]] = {
    "conv": lambda shapes, out: math.prod(out) * math.prod(shapes["weight"][0][1:]),
    "conv_transpose": lambda shapes, _: math.prod(shapes["x"][0]) * math.prod(shapes["weight"][0][1:]),
    "linear": lambda shapes, out: math.prod(out) * shapes["weight"][0][-1],
    "matmul": lambda shapes, out: product_macs(shapes["x"][0], out),
    "scaled_dot_product_attention": _attention,
}
