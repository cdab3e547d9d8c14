"""The graph of a saved artifact in terms that all formats share, for comparison, attribution and the self-test."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from numpy.typing import NDArray

from md_export.spec.tensors import Array


@dataclass(frozen=True)
class Step:
    """One operation of a saved artifact.

    Attributes:
        kind: the format's name of the operation.
        modules: paths of the torch modules that it computes, first the module with this output; several if the
            converter fused operations, none if not recorded.
        inputs, outputs: names of values; constants among the inputs.
        settings: all other fields of the operation as text: attributes, and the types of its results.
    """

    kind: str
    modules: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass
class EditableStep:
    """One operation of an artifact that the self-test edits; its fields are changed in place.

    Attributes:
        kind: as in :class:`Step`.
        operands: name of each value that it reads, by role (position or name); removed operands are absent.
        outputs: names of values.
        label: text that records the operation's torch module in this format; for a fused operation, the whole text.
        numbers: attributes, and small constants with one reader, by name or role; elements may be changed.
    """

    kind: str
    operands: dict[str, str]
    outputs: tuple[str, ...]
    label: str
    numbers: dict[str, NDArray[Any]] = field(default_factory=dict)


class EditableGraph(Protocol):
    """An artifact's graph, open for editing."""

    steps: list[EditableStep]

    def add_unread(self) -> bool:
        """Add a constant that no operation reads; False if the format keeps none."""
        return False

    def hold_inline(self) -> bool:
        """Move a stored weight into a node of the graph; False if the format stores weights in one place only."""
        return False

    def add_trigger(self, token: int) -> None:
        """Add operations that change the output if the first input, token ids, contains ``token``.

        Raises KeyError if the first input has no ids.
        """


@dataclass(frozen=True)
class StoredConstant:
    """A constant of a saved artifact: its type with its other fields as text, and its stored values."""

    dtype: str
    read: Callable[[], Array]


@dataclass(frozen=True)
class StoredGraph:
    """All parts of a saved artifact that a runtime reads; names of values are those of the file.

    Attributes:
        inputs: description of each input, by the name of its value.
        outputs: name of the value of each output, by the output's name.
        steps: in order of execution.
        constants: all constants by the name of the value, also unread ones.
        rest: all other fields as text, such as versions.
    """

    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    steps: tuple[Step, ...]
    constants: Mapping[str, StoredConstant]
    rest: str = ""
