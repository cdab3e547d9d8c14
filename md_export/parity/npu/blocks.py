"""Run an artifact on a phone's NPU block by block, if the simulator cannot run it whole or blocks are requested.

Each block is a separate graph, compiled and executed like a whole artifact. Its inputs are the outputs of the earlier
blocks on the simulator, and its outputs are compared with the CPU's in float32 on the same inputs, so the last block's
outputs contain the errors of all blocks. After a block that fails, the next one gets the CPU's values.

Optimizations that the compiler would make across the cuts are not covered.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from md_export.errors import RuntimeFault
from md_export.parity.metrics import Check, Fault, compare, first_fault
from md_export.spec.names import Soc
from md_export.spec.tensors import Array, Arrays
from md_export.targets.execution import costs
from md_export.targets.onnx.npu.process import NpuLimits, NpuRun, RefusedOp, cut_for_npu, refusal, try_on_npu

# Number of blocks. Each has at most 1/BLOCKS of the multiply-adds, if its modules can be separated.
BLOCKS: Final = 16
# Measured with onnxruntime-qnn 2.7.0 on whole float16 components: text encoder (247 MB: 1.7 GB), UNet for 512 pixels
# (773 MB, 184 G multiply-adds: 356 s, 4.8 GB), decoder (20 MB, 351 G, values of 67 MB: 579 s, 1.1 GB).
_SECONDS_PER_MAC: Final = 2e-9
_START_BYTES: Final = 400_000_000
_PER_WEIGHT_BYTE: Final = 6
_PER_VALUE_BYTE: Final = 9


@dataclass(frozen=True)
class Demand:
    """Predicted cost of a whole artifact: seconds of one simulated execution, and peak memory in bytes."""

    seconds: float
    bytes: int

    def too_much(self, limits: NpuLimits, batches: int) -> str | None:
        """Return why the demand exceeds the limits of one process; None if it does not."""
        if limits.seconds is not None and self.seconds * batches > limits.seconds:
            return f"whole it would take about {self.seconds * batches:.0f} s of {limits.seconds:g} s"
        if self.bytes > limits.most_bytes:
            return f"whole it would take about {self.bytes / 1e9:.1f} GB of {limits.most_bytes / 1e9:.1f} GB"
        return None


@dataclass(frozen=True)
class NpuBlock:
    """Verdict on one block.

    Attributes:
        title: the torch modules that it computes.
        nodes: number of nodes on the NPU, if it computes all of them.
        refused: nodes that the NPU would leave to the CPU.
        snr_db: worst SNR of the block's outputs against float32 on the CPU, on the same inputs; None without outputs.
        compile_seconds, run_seconds: compile time, and average time of one execution on the simulator, not on a phone.
        peak_bytes: peak memory of the compiler or the simulator.
    """

    title: str
    faults: tuple[str, ...]
    nodes: int = 0
    refused: tuple[RefusedOp, ...] = ()
    snr_db: float | None = None
    compile_seconds: float = 0.0
    run_seconds: float = 0.0
    context_bytes: int = 0
    peak_bytes: int = 0


@dataclass(frozen=True)
class Blockwise:
    """All blocks in order, and the component's outputs for each set of inputs, from the NPU if no block has a fault."""

    blocks: tuple[NpuBlock, ...]
    outputs: list[dict[str, Array]]


def least_of(blocks: Sequence[NpuBlock]) -> str:
    """Return a text that names the block with the least SNR; every block must have an SNR."""
    snr_db, title = min((item.snr_db or 0.0, item.title) for item in blocks)
    return f"the block with the least on its own is {title}, {snr_db:.1f} dB"


def demand_of(graph: Path) -> Demand | None:
    """Predict the cost of a whole artifact from its multiply-adds, weights and largest value; None without a graph."""
    try:
        ops = costs("onnx", graph, RuntimeFault)
    except RuntimeFault:
        return None
    weights, largest = sum(op.weight_bytes for op in ops), max((op.written_bytes for op in ops), default=0)
    return Demand(
        _SECONDS_PER_MAC * sum(op.macs for op in ops),
        _START_BYTES + _PER_WEIGHT_BYTE * weights + _PER_VALUE_BYTE * largest,
    )


def run_in_blocks(
    graph: Path,
    soc: Soc,
    batches: Sequence[Arrays],
    outputs: Collection[str],
    limits: NpuLimits,
    scratch: Path,
    progress: Callable[[str], None],
) -> Blockwise:
    """Cut a saved graph into blocks, and compile and execute them one after the other.

    Args:
        batches: sets of inputs of the component.
        outputs: names of the component's outputs.
        limits: limits of each process.
        scratch: an empty folder.

    Raises:
        RuntimeFault: the graph cannot be cut, or the CPU cannot run it.
    """
    cuts = cut_for_npu(graph, BLOCKS, scratch)
    values: list[Arrays] = list(batches)
    verdicts = []
    for number, cut in enumerate(cuts):
        progress(f"block {number + 1} of {len(cuts)}: {cut.title}")
        given = [{name: held[name] for name in cut.inputs} for held in values]
        trial = try_on_npu(Path(cut.file), Path(cut.exact), soc, given, limits)
        verdicts.append(_verdict(cut.title, trial, len(batches)))
        made = trial.wanted if verdicts[-1].faults else trial.outputs
        read = {name for later in cuts[number + 1 :] for name in later.inputs} | {*outputs}
        values = [_kept({**held, **new}, read) for held, new in zip(values, made, strict=True)]
    return Blockwise(tuple(verdicts), [_kept(held, outputs) for held in values])


def _kept(values: Arrays, names: Collection[str]) -> dict[str, Array]:
    return {name: value for name, value in values.items() if name in names}


def _verdict(title: str, trial: NpuRun, batches: int) -> NpuBlock:
    if trial.refused:
        snr_db, faults = None, [Fault(Check.EXECUTION, refusal(trial.refused))]
    elif trial.failure:
        snr_db, faults = None, [Fault(Check.EXECUTION, trial.failure)]
    else:
        snr_db, faults = _compared(trial.outputs, trial.wanted)
    return NpuBlock(
        title,
        tuple(faults),
        trial.nodes,
        trial.refused,
        snr_db,
        trial.compile_seconds,
        trial.run_seconds / batches,
        trial.context_bytes,
        trial.peak_bytes,
    )


def _compared(made: Sequence[dict[str, Array]], wanted: Sequence[dict[str, Array]]) -> tuple[float | None, list[Fault]]:
    """Return the worst SNR over all outputs of all executions, or the fault that prevents a comparison."""
    pairs = [(got[name], want[name], name) for got, want in zip(made, wanted, strict=True) for name in want]
    broken = [fault.of(name) for got, want, name in pairs if (fault := first_fault(got, want))]
    return (None, broken[:1]) if broken else (min(compare(got, want).snr_db for got, want, _ in pairs), [])
