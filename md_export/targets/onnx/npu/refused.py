"""Operations that the NPU's compiler leaves to the CPU."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RefusedOp:
    """One node of a graph that the NPU does not take.

    Attributes:
        operator: its kind.
        node: its name in the graph.
        modules: paths of the torch modules that it computes; none where the graph does not tell.
    """

    operator: str
    node: str
    modules: tuple[str, ...] = ()

    def __str__(self) -> str:
        where = " and ".join(filter(None, self.modules))
        return f"{self.operator} of {where or 'the component itself'} ({self.node})"
