"""One operation of a saved artifact in words that all formats share; each target reads its own format into them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from md_export.spec.tensors import Array
from md_export.targets.costs import bits_of

# None for a size that is known at run time only.
Shape = tuple[int | None, ...]
# Bytes to which the Neural Engine pads the last axis (docs/lint.md, rule last-axis-32).
_ALIGNMENT: Final = 64


@dataclass(frozen=True)
class Value:
    """A value that an operation reads or writes.

    Attributes:
        name: in the artifact; "" where the format has none.
        shape: static sizes; ``()`` for what has no shape.
        dtype: ``float16``, ``int32``, …; the format's own word for other types, "" for what is no tensor.
    """

    name: str
    shape: Shape
    dtype: str = ""

    @property
    def padded_bytes(self) -> int:
        """Bytes with the last axis padded as the Neural Engine does; unknown sizes count as 1, what is no tensor 0."""
        *outer, last = (size or 1 for size in self.shape or (1,))
        bits = bits_of(self.dtype) if self.dtype else 0
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
    """

    kind: str
    module: str
    reads: tuple[Value, ...]
    writes: tuple[Value, ...]
    stored: str = ""
    decodes: bool = False
    bytes: int = 0
    constants: Mapping[str, Callable[[], Array]] = field(default_factory=dict, compare=False)

    @property
    def name(self) -> str:
        """Name of the first output; the kind where there is none."""
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
