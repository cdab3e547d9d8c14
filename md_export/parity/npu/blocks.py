"""An artifact on a phone's NPU block by block, where the simulator cannot be given the whole, or is not to be.

Each block is a graph of its own, compiled and executed as a whole artifact would be. It takes what the blocks before
it made on the simulator and is held against the CPU's float32 on the same inputs; so the last one's outputs have the
errors of all. After a block that fails the CPU's values go on.

What the compiler does across the cuts is not seen.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from md_export.errors import RuntimeFault
from md_export.parity.metrics import Check, Fault, compare, first_fault
from md_export.spec.snapdragon import Soc
from md_export.spec.tensors import Array, Arrays
from md_export.targets.execution import costs
from md_export.targets.onnx.npu.answers import RefusedOp
from md_export.targets.onnx.npu.process import NpuLimits, NpuTrial, cut_for_npu, refusal, try_on_npu

# A block has at most this share of the multiply-adds, where its modules can be told apart.
BLOCKS: Final = 16
# Measured with onnxruntime-qnn 2.7.0 on whole float16 components: text encoder (247 MB: 1.7 GB), UNet for 512 pixels
# (773 MB, 184 G multiply-adds: 356 s, 4.8 GB), decoder (20 MB, 351 G, values of 67 MB: 579 s, 1.1 GB).
_SECONDS_PER_MAC: Final = 2e-9
_START_BYTES: Final = 400_000_000
_PER_WEIGHT_BYTE: Final = 6
_PER_VALUE_BYTE: Final = 9


@dataclass(frozen=True)
class Demand:
    """What compiling and simulating a whole artifact will take: seconds of one execution, most bytes of memory."""

    seconds: float
    bytes: int

    def too_much(self, limits: NpuLimits, batches: int) -> str | None:
        """Why it is more than one process may have; None where it is not."""
        if limits.seconds is not None and self.seconds * batches > limits.seconds:
            return f"whole it would take about {self.seconds * batches:.0f} s of {limits.seconds:g} s"
        if self.bytes > limits.most_bytes:
            return f"whole it would take about {self.bytes / 1e9:.1f} GB of {limits.most_bytes / 1e9:.1f} GB"
        return None


@dataclass(frozen=True)
class NpuBlock:
    """One block's verdict.

    Attributes:
        title: the torch modules that it computes.
        nodes: that the NPU has, if it has all.
        refused: what it would leave to the CPU.
        snr_db: the worst of its outputs against float32 on the CPU, on the same inputs; None without any.
        compile_seconds, run_seconds: the second of one execution on the average; no phone's.
        peak_bytes: most memory that the compiler or the simulator held.
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
    """All blocks in order, and the component's outputs for each set of inputs: the NPU's if no block has a fault."""

    blocks: tuple[NpuBlock, ...]
    outputs: list[dict[str, Array]]


def least_of(blocks: Sequence[NpuBlock]) -> str:
    """Which block has the least SNR, in a few words; all have one."""
    snr_db, title = min((item.snr_db or 0.0, item.title) for item in blocks)
    return f"the block with the least on its own is {title}, {snr_db:.1f} dB"


def demand_of(graph: Path) -> Demand | None:
    """Foretell what a whole artifact takes, from its multiply-adds, weights and largest value; None for no graph."""
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
    """Cut a saved graph, and compile and execute one block after the other.

    Args:
        batches: inputs of the component.
        outputs: names of its outputs.
        limits: of each process.
        scratch: an empty folder.

    Raises:
        RuntimeFault: the graph cannot be cut, or the CPU does not run it.
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


def _verdict(title: str, trial: NpuTrial, batches: int) -> NpuBlock:
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
    """The worst of all outputs of all executions; or why one cannot be compared."""
    pairs = [(got[name], want[name], name) for got, want in zip(made, wanted, strict=True) for name in want]
    broken = [fault.of(name) for got, want, name in pairs if (fault := first_fault(got, want))]
    return (None, broken[:1]) if broken else (min(compare(got, want).snr_db for got, want, _ in pairs), [])
