"""Run every TFLite artifact of an export in all kernels of a library, and find the op that makes a difference.

An app may ship another runtime than LiteRT with XNNPACK. Every set of kernels executes each artifact on its golden
inputs; the outputs are compared with the golden outputs and with those of LiteRT with XNNPACK.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from md_export.errors import RuntimeFault
from md_export.parity.metrics import EXACT_DB, compare, first_fault
from md_export.parity.opened_export import open_export
from md_export.parity.subject import Subject
from md_export.parity.verdict import ComponentVerdict, Verdict
from md_export.spec.tensors import Array, Arrays, joined
from md_export.system.workspace import scratch_folder
from md_export.targets.execution import execute
from md_export.targets.operations import Shape
from md_export.targets.tflite.observe import Observed, observed, write_alone, write_observed
from md_export.targets.tflite.run import OWN, Runtime, runtimes_of


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
    shape: Shape
    snr_db: float

    def __str__(self) -> str:
        shape = "×".join(str(size) for size in self.shape) or "scalar"
        where = self.module or "no module"
        return f"{self.operator} {shape} of {where} ({self.tensor}): {self.snr_db:.1f} dB SNR on the same inputs"


def agreement(value: Array, reference: Array) -> float:
    """Return the SNR in dB; the lowest SNR if the shapes differ or only one of the two is finite."""
    if np.array_equal(value, reference, equal_nan=value.dtype.kind == "f"):
        return EXACT_DB
    if first_fault(value, reference) or first_fault(reference, value):
        return -EXACT_DB
    return compare(value, reference).snr_db


def disagreements(path: Path, inputs: Arrays, runtime: str, least_snr_db: float) -> tuple[OpDisagreement, ...]:
    """Return the ops of a file, in order, whose output in ``runtime`` is below ``least_snr_db`` against XNNPACK's.

    Args:
        path: a .tflite file that both execute.
        inputs: one set of inputs for it.
        runtime: a name from RUNTIMES.
        least_snr_db: in dB, of each op's output.

    Returns:
        those ops; if no op is below, the one op that differs most.

    Raises:
        RuntimeFault: a runtime cannot execute a single op.
    """
    with scratch_folder() as scratch:
        whole, alone = scratch / path.name, scratch / f"alone_{path.name}"
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
    return OpDisagreement(op.kind, op.module, op.name, op.shape, snr_db)


@dataclass(frozen=True)
class KernelDetails:
    """Result of an artifact on one set of kernels.

    Attributes:
        kernels: name of the kernels in words.
        agreement_db: SNR against LiteRT with XNNPACK, worst of all cases; None if it could not be computed.
        findings: the ops that make the difference, if it is too large; if no single op does, the one that differs
            most.
    """

    kernels: str
    agreement_db: float | None = None
    findings: tuple[OpDisagreement, ...] = ()


def verify_in_runtimes(
    out: Path, golden_dir: Path | None, library: str, progress: Callable[[str], None] = lambda _: None
) -> tuple[Verdict[KernelDetails], ...]:
    """Judge a TFLite export in ``out`` in every set of kernels of ``library``.

    Raises:
        ArtifactError: the manifest is unreadable, or an artifact is missing.
        GoldenError: the golden cases are unreadable, altered, or of another checkpoint.
        MissingExtraError: the library is not installed.
    """
    runtimes = runtimes_of(library)
    runtimes[0].require()
    export = open_export(out, golden_dir)
    manifest, cases = export.manifest, export.golden.cases
    subjects = [Subject(export, entry, cases) for entry in manifest.artifacts]
    by_runtime = zip(*(_judge(subject, runtimes, progress) for subject in subjects), strict=True)
    return tuple(
        Verdict(manifest.target, manifest.recipe.name, len(cases), components, runtime=runtime.name)
        for runtime, components in zip(runtimes, by_runtime, strict=True)
    )


def _judge(
    subject: Subject, runtimes: Sequence[Runtime], progress: Callable[[str], None]
) -> list[ComponentVerdict[KernelDetails]]:
    """Return one verdict for each set of kernels."""
    inputs = subject.inputs()
    try:
        own = _run(subject.path, inputs, OWN)
    except RuntimeFault as error:
        # If LiteRT does not run the file, there is no reference to compare with.
        return [subject.verdict(KernelDetails(runtime.kernels), [str(error)]) for runtime in runtimes]
    verdicts = []
    for runtime in runtimes:
        progress(f"verify {subject.entry.component} in {runtime.name} ({runtime.kernels})")
        verdicts.append(_judge_kernels(subject, runtime, inputs, own, progress))
    return verdicts


def _judge_kernels(
    subject: Subject,
    runtime: Runtime,
    inputs: Sequence[Arrays],
    own: Sequence[Arrays],
    progress: Callable[[str], None],
) -> ComponentVerdict[KernelDetails]:
    """Return the verdict on one set of kernels; ``own``: outputs of LiteRT with XNNPACK for the golden ``inputs``."""
    least, engine = subject.tolerance.snr_db, KernelDetails(runtime.kernels)
    parity, faults = None, list[str]()
    try:
        made = _run(subject.path, inputs, runtime.name)
        parity, short = subject.compare(made)
        faults += short
        each = [agreement(joined(got), joined(want)) for got, want in zip(made, own, strict=True)]
        engine = KernelDetails(runtime.kernels, min(each))
        if not min(each) >= least:
            progress(f"{subject.entry.component} in {runtime.name}: which op?")
            findings = disagreements(subject.path, inputs[int(np.argmin(each))], runtime.name, least)
            engine = KernelDetails(runtime.kernels, min(each), findings)
            faults.append(_blame(min(each), least, findings))
    except RuntimeFault as error:
        faults.append(str(error))
    return subject.verdict(engine, faults, parity)


def _run(path: Path, inputs: Sequence[Arrays], runtime: str) -> Sequence[Arrays]:
    return execute("tflite", path, inputs, runtime).outputs


def _blame(agreed: float, least: float, findings: tuple[OpDisagreement, ...]) -> str:
    differs = f"differs from LiteRT with XNNPACK by more than {least:g} dB SNR ({agreed:.1f} dB)"
    if findings[0].snr_db >= least:
        return f"{differs}; no single op does, the difference accumulates; the largest part at: {findings[0]}"
    more = f", and {len(findings) - 1} more" if len(findings) > 1 else ""
    return f"{differs}; to blame first: {findings[0]}{more}"
