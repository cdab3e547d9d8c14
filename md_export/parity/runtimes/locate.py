"""Find the ops that two runtimes of one .tflite file compute differently, every op on the same given values."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from md_export.executing import execute
from md_export.parity.metrics import EXACT_DB, compare, first_fault
from md_export.targets.tflite.observe import Observed, observed, write_alone, write_observed
from md_export.targets.tflite.runtimes import OWN
from md_export.tensors import Array, Arrays


@dataclass(frozen=True)
class OpDisagreement:
    """One op whose results differ although its inputs are the same.

    Attributes:
        operator, module, tensor, shape: the op, the torch module that it computes, its output.
        snr_db: of its output against LiteRT with XNNPACK.
    """

    operator: str
    module: str
    tensor: str
    shape: tuple[int, ...]
    snr_db: float

    def __str__(self) -> str:
        shape = "×".join(str(size) for size in self.shape) or "scalar"
        where = self.module or "no module"
        return f"{self.operator} {shape} of {where} ({self.tensor}): {self.snr_db:.1f} dB SNR on the same inputs"


def agreement(value: Array, reference: Array) -> float:
    """SNR in dB; the least there is where only one of the two is finite or their shapes differ."""
    if np.array_equal(value, reference, equal_nan=value.dtype.kind == "f"):
        return EXACT_DB
    if first_fault(value, reference) or first_fault(reference, value):
        return -EXACT_DB
    return compare(value, reference).snr_db


def disagreements(path: Path, inputs: Arrays, runtime: str, least_snr_db: float) -> tuple[OpDisagreement, ...]:
    """Ops of a file that ``runtime`` computes to less than ``least_snr_db`` of LiteRT with XNNPACK, first ones first.

    Args:
        path: a .tflite file that both execute.
        inputs: one set of inputs for it.
        runtime: a name from RUNTIMES.
        least_snr_db: in dB, of each op's output.

    Returns:
        those ops; where there is none, the one op that differs most.

    Raises:
        RuntimeFault: a runtime does not execute an op alone.
    """
    with tempfile.TemporaryDirectory(prefix="md-export-") as scratch:
        whole, alone = Path(scratch) / path.name, Path(scratch) / f"alone_{path.name}"
        write_observed(path, whole)
        read = write_alone(path, alone)
        (values,) = execute("tflite", whole, [inputs], OWN).outputs
        given = {**inputs, **{key: values[key] for key in read}}
        (found,) = execute("tflite", alone, [given], runtime).outputs
    figures = [_finding(tensor, found[tensor.key], values[tensor.key]) for tensor in observed(path)]
    below = tuple(item for item in figures if not item.snr_db >= least_snr_db)
    return below or (min(figures, key=lambda item: item.snr_db),)


def _finding(tensor: Observed, value: Array, reference: Array) -> OpDisagreement:
    op, snr_db = tensor.op, agreement(tensor.centred(value), tensor.centred(reference))
    return OpDisagreement(op.operator, op.module, op.outputs[0], op.shape, snr_db)
