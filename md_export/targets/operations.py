"""The operations of a saved artifact in words that all formats share, with the arithmetic and traffic of each.

Each target reads its own format into :class:`Op` for rules, and into :class:`Node` for costs. :func:`costs_of` sees
weights through what only decodes them, and int8 values through the pairs that only mark them, and gives one
:class:`OpCost` for each operation that is left.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from md_export.spec.tensors import Array

# None for a size that is known at run time only.
Shape = tuple[int | None, ...]
# Bytes to which the Neural Engine pads the last axis (docs/lint.md, rule last-axis-32).
_ALIGNMENT: Final = 64
# "view": gives its input another shape, nothing is moved. "layout move": transposes, whatever it is called.
Work = Literal["convolution", "matrix product", "layout move", "view", "other"]
# Constants of these types say how an operation works: shapes, axes, switches.
_SETTINGS: Final = ("int32", "int64", "bool", "string")
MULTIPLYING: Final[tuple[Work, ...]] = ("convolution", "matrix product")


def bits_of(dtype: str) -> int:
    """Return the bits of an element: the number at the end of the type's name, 8 for ``bool``."""
    digits = dtype.lstrip("abcdefghijklmnopqrstuvwxyz")
    return int(digits) if digits.isdigit() else 8


@dataclass(frozen=True)
class Value:
    """A value that an operation reads or writes.

    Attributes:
        name: in the artifact; "" where the format has none.
        shape: sizes; ``()`` for what has no shape.
        dtype: numpy's name of the type, or one like it (``uint4``); the format's own word for other types, "" for what
            is no tensor.
        stored: bytes of a constant in the file; None of what is computed.
    """

    name: str
    shape: Shape
    dtype: str = ""
    stored: int | None = None

    @property
    def bits(self) -> int:
        """Bits of an element."""
        return bits_of(self.dtype)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The shape, where an unknown size counts as 1."""
        return tuple(1 if size is None else size for size in self.shape)

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.sizes)

    @property
    def bytes(self) -> int:
        """In the file, or in memory."""
        return -(-self.elements * self.bits // 8) if self.stored is None else self.stored

    @property
    def padded_bytes(self) -> int:
        """Bytes with the last axis padded as the Neural Engine does; unknown sizes count as 1, what is no tensor 0."""
        *outer, last = (size or 1 for size in self.shape or (1,))
        bits = self.bits if self.dtype else 0
        return math.prod(outer) * math.ceil(last * bits / 8 / _ALIGNMENT) * _ALIGNMENT


@dataclass(frozen=True)
class Op:
    """One operation.

    Attributes:
        kind: the format's name for it.
        module: path of the torch module that it computes; "" where the artifact does not tell.
        reads: values that exist while the program runs; for a format that stores constants as values, those too.
        writes: its outputs.
        stored: how its weight is stored, which is known before it runs: a dtype, or the kind of operation that decodes
            it; "" where it has none.
        decodes: it makes floats of a stored weight, which moves nothing while the program runs.
        bytes: it reads and writes.
        constants: what decodes each constant argument, by MIL's name for it where a rule asks for it (``strides``).
        after: kinds of operations whose results it reads, through any operations but products; where the target tells.
        read_by: kinds of operations that read its outputs; where the target tells.
        returned: whether it computes an output of the artifact; where the target tells.
    """

    kind: str
    module: str
    reads: tuple[Value, ...]
    writes: tuple[Value, ...]
    stored: str = ""
    decodes: bool = False
    bytes: int = 0
    constants: Mapping[str, Callable[[], Array]] = field(default_factory=dict, compare=False)
    after: frozenset[str] = frozenset()
    read_by: frozenset[str] = frozenset()
    returned: bool = False

    @property
    def name(self) -> str:
        """Name of the first output; the kind without outputs."""
        return self.writes[0].name if self.writes else self.kind

    @property
    def shape(self) -> Shape:
        """Shape of the first output."""
        return self.writes[0].shape

    @property
    def values(self) -> tuple[Value, ...]:
        """All that it reads and writes."""
        return (*self.reads, *self.writes)

    @property
    def computed(self) -> tuple[Value, ...]:
        """All that it reads but constants."""
        return tuple(value for value in self.reads if value.stored is None)

    @property
    def rank(self) -> int:
        """The largest rank among them."""
        return max((len(value.shape) for value in self.values), default=0)

    @property
    def reads_twice(self) -> bool:
        """Whether it reads one value more than once."""
        return len({value.name for value in self.reads}) < len(self.reads)


@dataclass(frozen=True)
class Facts:
    """A saved artifact.

    Attributes:
        ops: in order of execution, without those that only hold a constant.
        weight_bytes: of its stored weights.
        version: of its format.
        opened: the vendor's object that ``ops`` read constants from; it must live as long as they do.
    """

    ops: tuple[Op, ...]
    weight_bytes: int = 0
    version: int = 0
    opened: Any = None


@dataclass(frozen=True)
class OpCost:
    """One operation.

    Attributes:
        kind: the format's name for it.
        module: path of the torch module that it computes; "" where the artifact does not tell.
        work: what sort of work it is.
        macs: multiply-adds of one call.
        arithmetic: type of the values it takes: ``float16``, ``int8``, ….
        weights: number of its constants' elements; of a table, of the rows that are read.
        weight_bytes: of those, as they are stored.
        read_bytes, written_bytes: of values that are computed.
    """

    kind: str
    module: str
    work: Work
    macs: int
    arithmetic: str
    weights: int
    weight_bytes: int
    read_bytes: int
    written_bytes: int

    @property
    def is_layout_move(self) -> bool:
        """Whether it only gives values another order in memory."""
        return self.work == "layout move"

    @property
    def activation_bytes(self) -> int:
        """Read and written."""
        return self.read_bytes + self.written_bytes


@dataclass(frozen=True)
class Node:
    """An operation as a graph has it.

    Attributes:
        passing: it decodes a constant, or marks where values become integers: nothing that a phone does by itself.
        looks_up: reads rows of the constant that it is given.
        inputs, outputs: names of values.
    """

    kind: str
    work: Work
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    macs: int = 0
    module: str = ""
    passing: bool = False
    looks_up: bool = False


@dataclass(frozen=True)
class ExplorerGraph:
    """A saved artifact's main graph as Google's Model Explorer names it.

    Attributes:
        name: id of the graph.
        nodes: id of the node of each operation, in the order of :meth:`.contract.Target.steps`.
        values: what is known of each value of the steps, by name.
    """

    name: str
    nodes: tuple[str, ...]
    values: Mapping[str, Value]


def costs_of(nodes: Sequence[Node], values: Mapping[str, Value]) -> tuple[OpCost, ...]:
    """One for each node that a phone executes, in the order of the nodes, which is that of execution."""
    seen = _as_executed(nodes, values)
    return tuple(_cost(node, seen) for node in nodes if not node.passing and not _is_constant(node, seen))


def multiplying(taps: int) -> Work:
    """Return the work of a convolution with so many taps in space: with one, it multiplies matrices."""
    return "convolution" if taps > 1 else "matrix product"


def product_macs(left: Sequence[int], out: Sequence[int]) -> int:
    """Multiply-adds of a matrix product ``out [..., m, n] = left [..., m, k] · right``, ``left`` transposed or not."""
    if len(left) < len("mk") or len(out) < len("mn"):
        return math.prod(out) * (left[-1] if left else 1)
    return math.prod(out) * (left[-1] * left[-2] // max(out[-2], 1))


def einsum_macs(equation: str, shapes: Iterable[Sequence[int]]) -> int:
    """Multiply-adds of an einsum: the product of the sizes of all its letters."""
    sizes: dict[str, int] = {}
    for letters, shape in zip(equation.replace(" ", "").split("->")[0].split(","), shapes, strict=False):
        sizes |= dict(zip(letters, shape, strict=False))
    return math.prod(sizes.values())


def _is_constant(node: Node, values: Mapping[str, Value]) -> bool:
    """Whether it can be computed once, when the artifact is loaded."""
    return all(values[name].stored is not None for name in node.outputs if name in values)


def _as_executed(nodes: Sequence[Node], values: Mapping[str, Value]) -> dict[str, Value]:
    """Values with constants decoded to nothing but their stored bytes, and integers as integers on both sides."""
    seen = dict(values)
    passing = [node for node in nodes if node.passing and node.inputs and node.inputs[0] in seen]
    for node in passing:
        _pass_on(node, seen)
    for node in reversed(passing):
        given, taken = seen[node.inputs[0]], seen.get(node.outputs[0])
        if given.stored is None and taken is not None and taken.bits < given.bits:
            seen[node.inputs[0]] = dataclasses.replace(given, dtype=taken.dtype)
    return seen


def _pass_on(node: Node, seen: dict[str, Value]) -> None:
    given, out = [seen[name] for name in node.inputs if name in seen], node.outputs[0]
    taken = seen.get(out, given[0])
    if given[0].stored is not None:
        seen[out] = dataclasses.replace(taken, stored=sum(value.stored or 0 for value in given))
    elif given[0].bits < taken.bits or out not in seen:
        seen[out] = dataclasses.replace(taken, dtype=given[0].dtype)


def _cost(node: Node, values: Mapping[str, Value]) -> OpCost:
    given = [values[name] for name in node.inputs if name in values]
    written = [values[name] for name in node.outputs if name in values]
    computed = [value for value in given if value.stored is None]
    constants = [value for value in given if value.stored is not None and value.dtype not in _SETTINGS]
    weights, stored = sum(value.elements for value in constants), sum(value.bytes for value in constants)
    if node.looks_up and constants:
        table = max(constants, key=lambda value: value.bytes)
        weights = min(table.elements, sum(value.elements for value in written))
        stored = table.bytes * weights // max(table.elements, 1)
    typed = [*computed, *written][:1]
    return OpCost(
        kind=node.kind,
        module=node.module,
        work=node.work,
        macs=node.macs,
        arithmetic=typed[0].dtype.removeprefix("u") if typed else "",
        weights=weights,
        weight_bytes=stored,
        read_bytes=sum(value.bytes for value in computed),
        written_bytes=sum(value.bytes for value in written),
    )
