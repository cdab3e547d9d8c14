"""What a saved package says about each of its operations: kinds, types, shapes and small constants. Nothing is run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from md_export.errors import ArtifactError, RuntimeFault
from md_export.targets.coreml.mil.dtypes import TensorType, parse_type
from md_export.targets.coreml.mil.loading import Package
from md_export.targets.coreml.mil.values import Value, decode

# Of the last axis (docs/lint.md, rule last-axis-32).
ALIGNMENT: Final = 64


@dataclass(frozen=True)
class Edge:
    """A value that an operation reads or writes while it runs; ``type`` is None for lists and states."""

    name: str
    type: TensorType | None

    @property
    def shape(self) -> tuple[int | None, ...]:
        """Static sizes, None where only the run time knows; () for what has no rank."""
        return (self.type.shape or ()) if self.type else ()

    @property
    def bytes(self) -> int:
        """With the last axis padded to 64 bytes; dimensions that are not known count as 1."""
        if self.type is None:
            return 0
        sizes = [size or 1 for size in self.shape] or [1]
        row = sizes[-1] * max(self.type.dtype.bits, 1) / 8
        return math.prod(sizes[:-1]) * math.ceil(row / ALIGNMENT) * ALIGNMENT


class OpFacts:
    """One operation.

    Attributes:
        kind: MIL's name of it.
        reads: run-time values, not constants and not weights that are decompressed.
        writes: its outputs.
    """

    def __init__(self, proto: Any, types: Mapping[str, Edge], constants: Mapping[str, Any], package: Package) -> None:
        self.kind = str(proto.type)
        self.writes = tuple(_edge(output) for output in proto.outputs)
        self._arguments = {key: tuple(value.arguments) for key, value in proto.inputs.items()}
        self._attributes = proto.attributes
        self._constants = constants
        self._package = package
        names = [argument.name for group in self._arguments.values() for argument in group if argument.name]
        self.reads = tuple(types[name] for name in names if name in types)

    @property
    def name(self) -> str:
        """Of the first output; the kind where there is none."""
        return self.writes[0].name if self.writes else self.kind

    @property
    def bytes(self) -> int:
        """Read and written; a constexpr moves none while the program runs."""
        return 0 if self.kind.startswith("constexpr_") else sum(edge.bytes for edge in (*self.reads, *self.writes))

    def parameter(self, name: str) -> Value | None:
        """A constant argument, decoded; None where it is not given or not constant.

        Raises:
            RuntimeFault: a constant of a type that is not known.
        """
        if name in self._attributes:
            return decode(self._attributes[name], self._package.weights)
        found = list(self._values(name))
        return decode(found[0], self._package.weights) if found else None

    def constants(self) -> Iterator[torch.Tensor]:
        """All constant arguments that are tensors."""
        for name in self._arguments:
            for proto in self._values(name):
                value = decode(proto, self._package.weights)
                if isinstance(value, torch.Tensor):
                    yield value

    def _values(self, name: str) -> Iterator[Any]:
        for argument in self._arguments.get(name, ()):
            if argument.WhichOneof("binding") == "value":
                yield argument.value
            elif argument.name in self._constants:
                yield self._constants[argument.name]


@dataclass(frozen=True)
class PackageFacts:
    """``version`` of the specification; ``weight_bytes`` of the weight files; operations without the constants."""

    spec: Any
    version: int
    weight_bytes: int
    ops: tuple[OpFacts, ...]


def read_facts(path: Path) -> PackageFacts:
    """Open a saved ML program of any tool.

    Raises:
        ArtifactError: no readable ``.mlpackage`` with an ML program in it.
    """
    try:
        package = Package(path)
        name, functions = package.spec.description.defaultFunctionName or "main", package.spec.mlProgram.functions
        if name not in functions:
            raise ArtifactError(f"{path} has no function {name}; export it again")
        function = functions[name]
        block = function.block_specializations[function.opset]
        ops = tuple(_ops(function, block, package))
    except RuntimeFault as error:
        raise ArtifactError(str(error)) from error
    weights = sum(file.stat().st_size for file in path.rglob("weights/*") if file.is_file())
    return PackageFacts(package.spec, int(package.spec.specificationVersion), weights, ops)


def _ops(function: Any, block: Any, package: Package) -> Iterator[OpFacts]:
    constants = {op.outputs[0].name: op.attributes["val"] for op in block.operations if op.type == "const"}
    run_time = [op for op in block.operations if op.type != "const" and not op.type.startswith("constexpr_")]
    edges = [*function.inputs, *(output for op in run_time for output in op.outputs)]
    types = {edge.name: _edge(edge) for edge in edges}
    for op in block.operations:
        if op.type != "const":
            yield OpFacts(op, types, constants, package)


def _edge(proto: Any) -> Edge:
    declared = parse_type(proto.type)
    return Edge(proto.name, declared if isinstance(declared, TensorType) else None)
