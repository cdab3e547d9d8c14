"""Find the op at which LiteRT's GPU engine goes wrong or fails, by halving.

The first n ops of a graph are executed as a graph of their own. Where the engine does well on n and badly on
n + 1, the op between them is named. What the engine fuses stays fused: nothing before the cut is changed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from md_export.gpu import GpuExecution, execute_on_gpu
from md_export.parity.metrics import compare, first_fault
from md_export.targets.tflite.gpu.graph import graph_ops
from md_export.targets.tflite.gpu.log import read_log
from md_export.targets.tflite.gpu.residency import OpFinding, finding_of
from md_export.tensors import Arrays


@dataclass(frozen=True)
class Search:
    """What is searched.

    Attributes:
        path: a .tflite file that the engine executes badly.
        inputs: one set of inputs for it.
        least_snr_db: what the engine's results must have against XNNPACK's on the same ops.
        limit_s: seconds for each attempt.
        failing: whether the engine fails on the file; else its numbers are wrong.
    """

    path: Path
    inputs: Arrays
    least_snr_db: float
    limit_s: float
    failing: bool


def first_bad_op(search: Search, progress: Callable[[str], None]) -> OpFinding | None:
    """The first op from which on the engine does badly.

    None where it does as XNNPACK does on the whole graph: then it is the file that is not what it is judged by.
    """
    ops = graph_ops(search.path)
    good, bad = 0, len(ops)
    reason = _trouble(search, bad)
    if reason is None:
        return None
    while bad - good > 1:
        middle = (good + bad) // 2
        progress(f"{search.path.stem}: which op? {bad - good} left")
        found = _trouble(search, middle)
        if found is None:
            good = middle
        else:
            bad, reason = middle, found
    return finding_of(ops[bad - 1], reason, certain=True)


def _trouble(search: Search, count: int) -> str | None:
    """What is wrong with the first ``count`` ops; None if nothing that is searched for."""
    run = execute_on_gpu(search.path, [search.inputs], search.limit_s, ops=count)
    if search.failing:
        # What XNNPACK does not run either is not the engine's fault.
        return words_of(run) if run.reference else None
    return _deviation(run, search.least_snr_db)


def words_of(run: GpuExecution) -> str | None:
    """The engine's own words on a failure; None if there was none."""
    if run.failure is None:
        return None
    return "; ".join(read_log(run.log).trouble) or run.failure


def _deviation(run: GpuExecution, least_snr_db: float) -> str | None:
    for made, wanted in zip(run.outputs, run.reference, strict=False):
        for name, reference in wanted.items():
            fault = first_fault(made[name], reference)
            if fault:
                return fault
            snr_db = compare(made[name], reference).snr_db
            if not snr_db >= least_snr_db:
                return f"computed wrongly from here on: {snr_db:.1f} dB SNR against XNNPACK"
    return None
