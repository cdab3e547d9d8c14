"""Every TFLite artifact of an export in all kernels of a library: is it right there, and which op makes the difference?

An app may ship another runtime than LiteRT with XNNPACK. Each artifact is executed on its golden inputs by every set
of kernels; its outputs are held against the golden outputs and against what LiteRT with XNNPACK makes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from md_export.artifact import ArtifactEntry, Parity, artifact_path
from md_export.errors import RuntimeFault
from md_export.executing import execute
from md_export.parity.cases import each_call, golden_cases
from md_export.parity.opening import OpenedExport, open_export
from md_export.parity.runtimes.locate import OpDisagreement, agreement, disagreements
from md_export.parity.verify import altered_faults, shortfalls, worst_parity
from md_export.recipe import Tolerance
from md_export.targets.tflite.runtimes import OWN, Runtime, runtimes_of
from md_export.tensors import Array, Arrays, joined


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
