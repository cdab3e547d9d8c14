"""What is found of an export on phones' NPUs."""

from __future__ import annotations

from dataclasses import dataclass

from md_export.models.sampling.generate import Float32
from md_export.parity.npu.blocks import NpuBlock
from md_export.parity.verdict import PictureResult
from md_export.spec.artifact import Parity
from md_export.spec.recipe import Tolerance
from md_export.targets.onnx.npu.refused import RefusedOp


@dataclass(frozen=True)
class NpuComponent:
    """One artifact's verdict on one phone.

    Attributes:
        soc: name in SOCS.
        nodes: of the graph that the NPU computes, if it computes all; 0 where that is not known.
        refused: what it would leave to the CPU.
        compile_seconds, compile_bytes: of the compiler, the second the most memory that it held.
        context_bytes: of what it made.
        parity: against the golden outputs; None where a fault kept it from being computed.
        run_seconds: of one execution on the average, by the simulator; no phone's.
        blocks: where it was executed block by block; figures above are then their sums, or that of the largest, and
            ``parity`` has the errors of all.
        why: it was executed block by block; "" where it was not.
    """

    component: str
    file: str
    soc: str
    tolerance: Tolerance
    faults: tuple[str, ...]
    nodes: int = 0
    refused: tuple[RefusedOp, ...] = ()
    compile_seconds: float = 0.0
    compile_bytes: int = 0
    context_bytes: int = 0
    parity: Parity | None = None
    run_seconds: float = 0.0
    blocks: tuple[NpuBlock, ...] = ()
    why: str = ""

    @property
    def extent(self) -> str:
        """What was executed at once."""
        return f"{len(self.blocks)} blocks" if self.blocks else "whole"


@dataclass(frozen=True)
class NpuResult:
    """All verdicts of one export; ``pictures`` has one for each phone, where the export makes one in one step."""

    recipe: str
    cases: int
    components: tuple[NpuComponent, ...]
    pictures: dict[str, PictureResult]

    @property
    def failures(self) -> tuple[str, ...]:
        """One line for each thing that falls short, component and phone first."""
        lines = [f"{item.component} on {item.soc}: {fault}" for item in self.components for fault in item.faults]
        return (*lines, *(f"picture on {soc}: {fault}" for soc, item in self.pictures.items() for fault in item.faults))


@dataclass(frozen=True)
class NpuVerification:
    """A verdict, and the pictures ``[H, W, 3]`` in [0, 1] of each phone, one for each case, by the phone's name."""

    result: NpuResult
    pictures: dict[str, tuple[Float32, ...]]
