"""Every TFLite artifact of an export in all kernels of a library: is it right there, and which op makes the difference?

An app may ship another runtime than LiteRT with XNNPACK. Each artifact is executed on its golden inputs by every set
of kernels; its outputs are held against the golden outputs and against what LiteRT with XNNPACK makes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from md_export.errors import RuntimeFault
from md_export.parity.golden.surface import each_call, golden_cases
from md_export.parity.judge import altered_faults, shortfalls, worst_parity
from md_export.parity.metrics import EXACT_DB, compare, first_fault
from md_export.parity.opened_export import OpenedExport, open_export
from md_export.spec.artifact import ArtifactEntry, Parity, artifact_path
from md_export.spec.recipe import Tolerance
from md_export.spec.tensors import Array, Arrays, joined
from md_export.targets.execution import execute
from md_export.targets.tflite.observe import Observed, observed, write_alone, write_observed
from md_export.targets.tflite.runtimes import OWN, Runtime, runtimes_of


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


@dataclass(frozen=True)
class RuntimeVerdict:
    """One artifact in one set of kernels.

    Attributes:
        runtime, kernels: its name and what computes, in words.
        parity: against the golden outputs; None where a fault kept it from being computed.
        agreement_db: SNR against LiteRT with XNNPACK, worst of all cases.
        findings: the ops that make the difference, where there is too much of it; the one that differs most where
            no op alone does.
    """

    component: str
    file: str
    runtime: str
    kernels: str
    tolerance: Tolerance
    faults: tuple[str, ...]
    parity: Parity | None = None
    agreement_db: float | None = None
    findings: tuple[OpDisagreement, ...] = ()


@dataclass(frozen=True)
class RuntimesResult:
    """All verdicts of one export."""

    recipe: str
    cases: int
    verdicts: tuple[RuntimeVerdict, ...]

    @property
    def failures(self) -> tuple[str, ...]:
        """One line for each thing that falls short, component and runtime first."""
        return tuple(f"{item.component} in {item.runtime}: {fault}" for item in self.verdicts for fault in item.faults)


@dataclass(frozen=True)
class _Subject:
    """An artifact, its golden inputs and outputs, and what LiteRT with XNNPACK makes of the inputs."""

    entry: ArtifactEntry
    path: Path
    tolerance: Tolerance
    inputs: Sequence[Arrays]
    wanted: list[Array]
    own: list[Array]
    names: tuple[str, ...]


def verify_in_runtimes(
    out: Path, golden_dir: Path | None, library: str, progress: Callable[[str], None] = lambda _: None
) -> RuntimesResult:
    """Judge a TFLite export in ``out`` in every set of kernels of ``library``.

    Raises:
        ArtifactError: the manifest is unreadable, or an artifact is missing.
        GoldenError: the golden cases are unreadable, altered, or of another checkpoint.
        MissingExtraError: the library is not installed.
    """
    runtimes = runtimes_of(library)
    runtimes[0].require()
    export = open_export(out, golden_dir)
    verdicts: list[RuntimeVerdict] = []
    for entry in export.manifest.artifacts:
        verdicts += _judge_artifact(export, entry, runtimes, progress)
    return RuntimesResult(export.manifest.recipe.name, len(export.golden.cases), tuple(verdicts))


def _judge_artifact(
    export: OpenedExport, entry: ArtifactEntry, runtimes: Sequence[Runtime], progress: Callable[[str], None]
) -> list[RuntimeVerdict]:
    recipe, cases, path = export.manifest.recipe, export.golden.cases, artifact_path(export.out, entry)
    tolerance, altered = recipe.tolerances[entry.component], tuple(altered_faults(export.out, entry))
    inputs, wanted = golden_cases(recipe, entry, cases)
    try:
        own = _run(path, inputs, OWN)
    except RuntimeFault as error:
        # A file that LiteRT itself does not run has nothing to be held against.
        return [RuntimeVerdict(entry.component, entry.file, OWN, "XNNPACK", tolerance, (*altered, str(error)))]
    names = tuple(call.label for call in each_call(entry.component, cases))
    subject = _Subject(entry, path, tolerance, inputs, wanted, own, names)
    return [_judge(subject, runtime, altered, progress) for runtime in runtimes]


def _judge(
    subject: _Subject, runtime: Runtime, altered: tuple[str, ...], progress: Callable[[str], None]
) -> RuntimeVerdict:
    entry, tolerance = subject.entry, subject.tolerance
    progress(f"verify {entry.component} in {runtime.name} ({runtime.kernels})")
    faults: list[str] = list(altered)
    parity: Parity | None = None
    agreed: float | None = None
    findings: tuple[OpDisagreement, ...] = ()
    try:
        made = _run(subject.path, subject.inputs, runtime.name)
        parity, broken = worst_parity(made, subject.wanted, subject.names)
        faults += broken if parity is None else shortfalls(parity, tolerance)
        each = [agreement(got, own) for got, own in zip(made, subject.own, strict=True)]
        agreed = min(each)
        if not agreed >= tolerance.snr_db:
            progress(f"{entry.component} in {runtime.name}: which op?")
            inputs = subject.inputs[int(np.argmin(each))]
            findings = disagreements(subject.path, inputs, runtime.name, tolerance.snr_db)
            faults.append(_blame(agreed, tolerance.snr_db, findings))
    except RuntimeFault as error:
        faults.append(str(error))
    return RuntimeVerdict(
        entry.component, entry.file, runtime.name, runtime.kernels, tolerance, tuple(faults), parity, agreed, findings
    )


def _run(path: Path, inputs: Sequence[Arrays], runtime: str) -> list[Array]:
    return [joined(outputs) for outputs in execute("tflite", path, inputs, runtime).outputs]


def _blame(agreed: float, least: float, findings: tuple[OpDisagreement, ...]) -> str:
    differs = f"differs from LiteRT with XNNPACK by more than {least:g} dB SNR ({agreed:.1f} dB)"
    if findings[0].snr_db >= least:
        return f"{differs}; no op alone does, the difference builds up; most of it at: {findings[0]}"
    more = f", and {len(findings) - 1} more" if len(findings) > 1 else ""
    return f"{differs}; to blame first: {findings[0]}{more}"
