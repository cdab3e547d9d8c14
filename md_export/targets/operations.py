"""Operations of a saved artifact in terms that all formats share, with the arithmetic and memory traffic of each.

Each target converts its format to :class:`Op` for rules, and to :class:`Node` for costs. :func:`costs_of` skips
operations that only decode weights and pairs that only mark int8 values, and returns one :class:`OpCost` for each
remaining operation.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from md_export.spec.tensors import Array

# None for a size that is known only at run time.
Shape = tuple[int | None, ...]
# Bytes to which the Neural Engine pads the last axis (docs/lint.md, rule last-axis-32).
_ALIGNMENT: Final = 64
# "view": only changes the shape, moves nothing. "layout move": any kind of transposition.
Work = Literal["convolution", "matrix product", "layout move", "view", "other"]
# Constants of these types are settings of an operation: shapes, axes, flags.
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
        name: name in the artifact; "" if the format has none.
        shape: sizes; ``()`` without a shape.
        dtype: numpy's name of the type, or a similar one (``uint4``); the format's name for other types, "" for a value
            that is not a tensor.
        stored: bytes of a constant in the file; None for a computed value.
    """

    name: str
    shape: Shape
    dtype: str = ""
    stored: int | None = None

    @property
    def bits(self) -> int:
        """Number of bits of an element."""
        return bits_of(self.dtype)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The shape, with 1 for unknown sizes."""
        return tuple(1 if size is None else size for size in self.shape)

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.sizes)

    @property
    def bytes(self) -> int:
        """Number of bytes in the file, or in memory for a computed value."""
        return -(-self.elements * self.bits // 8) if self.stored is None else self.stored

    @property
    def padded_bytes(self) -> int:
        """Bytes with the last axis padded like on the Neural Engine; unknown sizes count as 1; 0 if not a tensor."""
        *outer, last = (size or 1 for size in self.shape or (1,))
        bits = self.bits if self.dtype else 0
        return math.prod(outer) * math.ceil(last * bits / 8 / _ALIGNMENT) * _ALIGNMENT


@dataclass(frozen=True)
class Op:
    """One operation.

    Attributes:
        kind: the format's name of the operation.
        module: path of the torch module that it computes; "" if not recorded.
        reads: values that exist while the program runs, and constants if the format stores them as values.
        writes: outputs.
        stored: storage of its weight: a dtype, or the kind of operation that decodes it; "" without a weight.
            decodes: whether it decodes a stored weight to floats, which moves nothing while the program runs.
        bytes: bytes that it reads and writes.
        constants: functions that decode each constant argument, by MIL's name of the argument (``strides``).
        after: kinds of operations with results that it reads, through any operations but products; if the target
            provides them.
        read_by: kinds of operations that read its outputs, if the target provides them.
        returned: whether it computes an output of the artifact, if the target provides it.
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
        """All values that it reads and writes."""
        return (*self.reads, *self.writes)

    @property
    def computed(self) -> tuple[Value, ...]:
        """All values that it reads, without constants."""
        return tuple(value for value in self.reads if value.stored is None)

    @property
    def rank(self) -> int:
        """The largest rank of its values."""
        return max((len(value.shape) for value in self.values), default=0)

    @property
    def reads_twice(self) -> bool:
        """Whether it reads one value more than once."""
        return len({value.name for value in self.reads}) < len(self.reads)


@dataclass(frozen=True)
class Facts:
    """Facts about a saved artifact, for rules.

    Attributes:
        ops: operations in order of execution, without those that only hold a constant.
        weight_bytes: bytes of the stored weights.
        version: version of the format.
        opened: the vendor's object that ``ops`` read constants from; it must stay alive as long as they do.
    """

    ops: tuple[Op, ...]
    weight_bytes: int = 0
    version: int = 0
    opened: Any = None


@dataclass(frozen=True)
class OpCost:
    """One operation.

    Attributes:
        kind: the format's name of the operation.
        module: path of the torch module that it computes; "" if not recorded.
        work: sort of work.
        macs: multiply-adds of one call.
        arithmetic: type of its input values: ``float16``, ``int8``, ….
        weights: number of elements of its constants; for a table, of the rows that are read.
        weight_bytes: stored bytes of these elements.
        read_bytes, written_bytes: bytes of computed values.
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
        """Whether it only changes the order of values in memory."""
        return self.work == "layout move"

    @property
    def activation_bytes(self) -> int:
        """Bytes of computed values that it reads and writes."""
        return self.read_bytes + self.written_bytes


@dataclass(frozen=True)
class Node:
    """An operation of a graph, for costs.

    Attributes:
        passing: whether it only decodes a constant or marks where values become integers; a phone does not execute it.
        looks_up: whether it reads rows of a constant.
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
    """The main graph of a saved artifact, with the ids of Google's Model Explorer.

    Attributes:
        name: id of the graph.
        nodes: id of the node of each operation, in the order of the steps of :meth:`.contract.Target.graph`.
        values: name, shape and dtype of each value of the steps, by name.
    """

    name: str
    nodes: tuple[str, ...]
    values: Mapping[str, Value]


def costs_of(nodes: Sequence[Node], values: Mapping[str, Value]) -> tuple[OpCost, ...]:
    """Return the cost of each node that a phone executes, in order of execution."""
    seen = _as_executed(nodes, values)
    return tuple(_cost(node, seen) for node in nodes if not node.passing and not _is_constant(node, seen))


def multiplying(taps: int) -> Work:
    """Return the work of a convolution with this many spatial taps; with one, it is a matrix product."""
    return "convolution" if taps > 1 else "matrix product"


def product_macs(left: Sequence[int], out: Sequence[int]) -> int:
    """Return the multiply-adds of ``out [..., m, n] = left [..., m, k] · right``, with ``left`` transposed or not."""
    if len(left) < len("mk") or len(out) < len("mn"):
        return math.prod(out) * (left[-1] if left else 1)
    return math.prod(out) * (left[-1] * left[-2] // max(out[-2], 1))


def einsum_macs(equation: str, shapes: Iterable[Sequence[int]]) -> int:
    """Return the multiply-adds of an einsum: the product of the sizes of all its letters."""
    sizes: dict[str, int] = {}
    for letters, shape in zip(equation.replace(" ", "").split("->")[0].split(","), shapes, strict=False):
        sizes |= dict(zip(letters, shape, strict=False))
    return math.prod(sizes.values())


def _is_constant(node: Node, values: Mapping[str, Value]) -> bool:
    """Whether a node can be computed once, when the artifact is loaded."""
    return all(values[name].stored is not None for name in node.outputs if name in values)


def _as_executed(nodes: Sequence[Node], values: Mapping[str, Value]) -> dict[str, Value]:
    """Return the values as executed: decoded constants with their stored bytes, quantized values as integers."""
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
