"""What a saved asset says about each of its operations: kinds, types, shapes and constants. Nothing is run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from md_export.errors import ArtifactError, RuntimeFault
from md_export.spec.tensors import Array
from md_export.targets.coreai.bindings import VENDOR_ERRORS, ir, kind_of, module_of, operations, read_program
from md_export.targets.coreai.constants import ELEMENTS, is_constant, stored_bytes, values_of
from md_export.targets.coreai.run import OUTPUT, names_of
from md_export.targets.coreai.weights import DECODERS

# Bytes to which the Neural Engine pads the last axis (docs/lint.md, rule last-axis-32).
_ALIGNMENT: Final = 64


@dataclass(frozen=True)
class Edge:
    """A value of the program.

    Attributes:
        dtype: ``float16``, ``int32``, …; the format's own word where it is none of ours.
        shape: static sizes, None where only the run time knows.
        bits: of one element.
        held: the operation that holds it, of a constant.
    """

    dtype: str
    shape: tuple[int | None, ...]
    bits: int
    held: Any = None

    @property
    def bytes(self) -> int:
        """With the last axis padded; dimensions that are not known count as 1."""
        sizes = [size or 1 for size in self.shape] or [1]
        row = sizes[-1] * self.bits / 8
        return math.prod(sizes[:-1]) * math.ceil(row / _ALIGNMENT) * _ALIGNMENT

    def values(self) -> Array:
        """Of a constant."""
        return values_of(self.held)


@dataclass(frozen=True)
class OpFacts:
    """One operation.

    Attributes:
        name: of its first output, by its place in the program.
        kind: the format's name of it.
        module: path of its torch module; empty where the file does not tell.
        reads: by operand: a value of the run time, or None for what is known before.
        writes: its outputs.
        constants: by operand: a constant, or None.
        weight: kind of the operation that decodes its weight; empty where none does.
    """

    name: str
    kind: str
    module: str
    reads: tuple[Edge | None, ...]
    writes: tuple[Edge, ...]
    constants: tuple[Edge | None, ...]
    weight: str = ""

    @property
    def edges(self) -> tuple[Edge, ...]:
        """Values of the run time that it reads or writes."""
        return (*(edge for edge in self.reads if edge), *self.writes)

    @property
    def decodes(self) -> bool:
        """Whether it makes floats of a stored weight; that moves nothing while the program runs."""
        return self.kind in DECODERS

    @property
    def bytes(self) -> int:
        """Read and written."""
        return 0 if self.decodes else sum(edge.bytes for edge in self.edges)

    def parameter(self, place: int) -> tuple[int, ...]:
        """The integers of a constant operand, ``()`` where there is none."""
        held = self.constants[place] if place < len(self.constants) else None
        return tuple(int(value) for value in held.values().reshape(-1)) if held else ()


@dataclass(frozen=True)
class AssetFacts:
    """A program.

    Attributes:
        ops: in order of execution, without what is known before they run.
        weight_bytes: of all constants.
        program: that the constants are views of; they live as long as it.
    """

    ops: tuple[OpFacts, ...]
    weight_bytes: int
    program: Any


def read_facts(path: Path) -> AssetFacts:
    """Open a saved asset of any tool.

    Raises:
        ArtifactError: no readable ``.aimodel``.
    """
    try:
        program = read_program(path)
        found = operations(program)
        ops = tuple(_ops(found, names_of(program)))
        return AssetFacts(ops, sum(stored_bytes(op) for op in found if is_constant(op)), program)
    except RuntimeFault as error:
        raise ArtifactError(str(error)) from error
    except VENDOR_ERRORS as error:
        raise ArtifactError(f"{path.name} cannot be read: {error}; export it again") from error


def _ops(found: list[Any], names: dict[Any, str]) -> list[OpFacts]:
    known: set[Any] = set()
    made = []
    for op in found:
        if op.name == OUTPUT:
            continue
        # The transposition of a weight, for one, is done when the program is compiled.
        is_known = all(value in known for value in op.operands)
        known |= set(op.results) if is_known else set()
        if not is_known or kind_of(op) in DECODERS:
            made.append(_facts(op, names, known))
    return made


def _facts(op: Any, names: dict[Any, str], known: set[Any]) -> OpFacts:
    constants = tuple(_edge(value) if _is_held(value) else None for value in op.operands)
    return OpFacts(
        name=names[op.results[0]],
        kind=kind_of(op),
        module=module_of(op) or "",
        reads=tuple(None if value in known else _edge(value) for value in op.operands),
        writes=tuple(map(_edge, op.results)),
        constants=constants,
        weight=next((kind for value in op.operands if (kind := _decoder(value))), ""),
    )


def _is_held(value: Any) -> bool:
    return not isinstance(value.owner, ir.Block) and is_constant(value.owner)


def _decoder(value: Any) -> str:
    """Kind of what decodes a value, also behind a transposition."""
    if isinstance(value.owner, ir.Block):
        return ""
    kind = kind_of(value.owner)
    if kind == "transpose":
        return _decoder(value.owner.operands[0])
    return kind if kind in DECODERS else ""


def _edge(value: Any) -> Edge:
    kind = value.type
    word = str(getattr(kind, "element_type", kind))
    element = ELEMENTS.get(word)
    # A type without a rank has no shape to speak of.
    sizes = tuple(kind.shape) if getattr(kind, "has_rank", False) else ()
    shape = tuple(None if size is None or size < 0 else int(size) for size in sizes)
    return Edge(element.name if element else word, shape, element.bits if element else 8, value.owner)
