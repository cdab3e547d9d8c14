"""The graph of a saved artifact in words that all formats share: compared, attributed, edited by the self-test."""

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
        kind: the format's name for it.
        modules: paths of the torch modules that it computes, the one whose value it gives first; several where
            the converter made one operation of many, none where the artifact does not tell.
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
    """One operation of an artifact that is open for change, for the self-test; fields are written in place.

    Attributes:
        kind: as in :class:`Step`.
        operands: name of each value that it takes, by its role: position or name; what is struck is left out.
        outputs: names of values.
        label: what tells the operation's torch module in this format; of a step made by fusing, the whole.
        numbers: attributes and small constants of one reader, by name or role; elements may be written.
    """

    kind: str
    operands: dict[str, str]
    outputs: tuple[str, ...]
    label: str
    numbers: dict[str, NDArray[Any]] = field(default_factory=dict)


class EditableGraph(Protocol):
    """An artifact's graph, open for change."""

    steps: list[EditableStep]

    def add_unread(self) -> bool:
        """Add a constant that no operation reads; False if the format keeps none."""
        return False

    def hold_inline(self) -> bool:
        """Move a stored weight into a node of the graph; False if the format stores weights in one place only."""
        return False

    def add_trigger(self, token: int) -> None:
        """Add operations that change the output where the first input, token ids, holds ``token``.

        KeyError: the first input holds no ids.
        """


@dataclass(frozen=True)
class Held:
    """A constant of a saved artifact: its type with its other fields as text, and its stored values."""

    dtype: str
    read: Callable[[], Array]


@dataclass(frozen=True)
class StoredGraph:
    """All parts of a saved artifact that a runtime reads; names of values are those of the file.

    Attributes:
        inputs: what the caller gives, in words, by the name of the value.
        outputs: name of the value that the caller gets, by the name that it gets it under.
        steps: in order of execution.
        constants: by the name of the value, read or not.
        rest: all other fields as text, such as versions.
    """

    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    steps: tuple[Step, ...]
    constants: Mapping[str, Held]
    rest: str = ""
