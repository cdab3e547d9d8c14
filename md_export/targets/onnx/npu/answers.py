"""Answers of the NPU's compiler and simulator, as they come from a worker; nothing of the vendor is imported."""

from __future__ import annotations

from dataclasses import dataclass

from md_export.spec.tensors import Array


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


@dataclass(frozen=True)
class Compiled:
    """Nodes of the graph that the NPU has, those that it refused, and seconds; nothing is written where it refused."""

    nodes: int
    refused: tuple[RefusedOp, ...]
    seconds: float


@dataclass(frozen=True)
class SimulatorRun:
    """Outputs for each set of inputs; seconds of loading, and of all executions, by the simulator."""

    outputs: list[dict[str, Array]]
    load_seconds: float
    run_seconds: float


@dataclass(frozen=True)
class CutBlock:
    """One block.

    Attributes:
        file: its graph.
        exact: the same in float32, for the CPU; may be the same file.
        title: the torch modules that it computes.
        inputs, outputs: values of the whole graph, by their names there.
    """

    file: str
    exact: str
    title: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
