"""Read kinds, types, shapes and small constants of each operation from a saved package, without running it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from md_export.errors import ArtifactError, RuntimeFault
from md_export.spec.tensors import Array
from md_export.targets.coreml.mil.dtypes import TensorType, parse_type
from md_export.targets.coreml.mil.loading import Package
from md_export.targets.coreml.mil.values import decode
from md_export.targets.coreml.modules import read_modules
from md_export.targets.lint.op import Facts, Op, Value


def read_facts(path: Path) -> Facts:
    """Read the facts of a saved ML program from any tool.

    Raises:
        ArtifactError: the path is not a readable ``.mlpackage`` that contains an ML program.
    """
    try:
        package = Package(path)
        name, functions = package.spec.description.defaultFunctionName or "main", package.spec.mlProgram.functions
        if name not in functions:
            raise ArtifactError(f"{path} has no function {name}; export it again")
        function = functions[name]
        ops = tuple(_ops(function, function.block_specializations[function.opset], package))
    except RuntimeFault as error:
        raise ArtifactError(str(error)) from error
    weights = sum(file.stat().st_size for file in path.rglob("weights/*") if file.is_file())
    return Facts(ops, weights, int(package.spec.specificationVersion), package)


def _ops(function: Any, block: Any, package: Package) -> Iterator[Op]:
    held = {op.outputs[0].name: op.attributes["val"] for op in block.operations if op.type == "const"}
    executed = [op for op in block.operations if op.type != "const"]
    outputs = (output for op in executed if not _decodes(op) for output in op.outputs)
    values = {proto.name: _value(proto) for proto in (*function.inputs, *outputs)}
    modules = read_modules(package.spec)
    for op in executed:
        names = [argument.name for group in op.inputs.values() for argument in group.arguments if argument.name]
        reads, writes = tuple(values[name] for name in names if name in values), tuple(map(_value, op.outputs))
        yield Op(
            kind=str(op.type),
            module=modules.get(writes[0].name, "") if writes else "",
            reads=reads,
            writes=writes,
            decodes=_decodes(op),
            bytes=0 if _decodes(op) else sum(value.padded_bytes for value in (*reads, *writes)),
            constants={role: partial(_decoded, proto, package) for role, proto in _constants(op, held)},
        )


def _decodes(op: Any) -> bool:
    return bool(op.type.startswith("constexpr_"))


def _value(proto: Any) -> Value:
    """Return a value's name, shape and dtype; lists and states have only a name, unknown rank is one unknown size."""
    declared = parse_type(proto.type)
    if not isinstance(declared, TensorType):
        return Value(proto.name, ())
    kind = declared.dtype
    dtype = f"float{kind.bits}" if kind.kind == "float" else kind.name
    return Value(proto.name, (None,) if declared.shape is None else declared.shape, dtype)


def _constants(op: Any, held: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield each constant argument with its role; further arguments of a role are numbered: ``role/1``."""
    yield from op.attributes.items()
    for role, group in op.inputs.items():
        for place, argument in enumerate(group.arguments):
            proto = argument.value if argument.WhichOneof("binding") == "value" else held.get(argument.name)
            if proto is not None:
                yield (f"{role}/{place}" if place else role), proto


def _decoded(proto: Any, package: Package) -> Array:
    return np.asarray(decode(proto, package.weights))
