"""Run every TFLite artifact of an export on LiteRT's GPU engine: check that all ops run there, and their outputs.

An artifact may be resident and wrong, so the two are separate results. Both are necessary for a phone but not
sufficient, because a phone has another version, backend and driver of the engine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from md_export.errors import RuntimeFault
from md_export.parity.metrics import compare, first_fault
from md_export.parity.opened_export import open_export
from md_export.parity.subject import Subject
from md_export.parity.verdict import ComponentVerdict, Verdict
from md_export.spec.tensors import Array, Arrays
from md_export.targets.tflite.gpu.engine import GpuExecution, execute_on_gpu
from md_export.targets.tflite.gpu.residency import EngineLog, OpFinding, finding_of, read_log, refused_ops

if TYPE_CHECKING:
    from md_export.targets.operations import Op


def _graph_ops(path: Path) -> list[Op]:
    """As :func:`md_export.targets.tflite.describe.graph_ops`, whose library only TFLite exports need."""
    from md_export.targets.tflite.describe import graph_ops

    return graph_ops(path)


@dataclass(frozen=True)
class Search:
    """A search for the op that the GPU engine refuses or computes wrongly.

    Attributes:
        path: a .tflite file on which the engine fails or computes wrongly.
        inputs: one set of inputs for it.
        least_snr_db: least SNR in dB of the engine's outputs against XNNPACK's on the same ops.
        limit_s: time limit of each attempt in seconds.
        failing: whether the engine fails on the file; otherwise its outputs are wrong.
    """

    path: Path
    inputs: Arrays
    least_snr_db: float
    limit_s: float
    failing: bool


def first_bad_op(search: Search, progress: Callable[[str], None]) -> OpFinding | None:
    """Find the first op from which on the engine fails or computes wrongly.

    Returns None if the engine matches XNNPACK on the whole graph: then the file itself differs from its reference.
    """
    ops = _graph_ops(search.path)
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
    """Return what is wrong with the first ``count`` ops; None if the fault of this search is not among them."""
    run = execute_on_gpu(search.path, [search.inputs], search.limit_s, ops=count)
    if search.failing:
        # If XNNPACK cannot run the ops either, the engine is not to blame.
        return words_of(run) if run.reference else None
    return _deviation(run, search.least_snr_db)


def words_of(run: GpuExecution) -> str | None:
    """Return the engine's message about a failure; None without a failure."""
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


# Number of findings in a one-line fault; a table lists all.
_SPELLED_OUT = 3
# Messages if no op is to blame: for wrong outputs, and for a failing engine.
_NOBODY = (
    "XNNPACK computes the same: it is the file that falls short",
    "no op is to blame: XNNPACK does not run it either, or a second attempt did not fail",
)


@dataclass(frozen=True)
class GpuDetails:
    """Result of one artifact on the GPU engine.

    Attributes:
        adapter: device that the engine ran on.
        resident: whether every op runs on the GPU; None if the engine failed.
        correct: whether the outputs meet the recipe's thresholds, wherever the ops ran; None without outputs.
        ops, on_cpu: number of ops in the graph, and of those that the engine left to the CPU.
        findings: the ops to blame.
        compile_seconds, run_seconds: time of the compilation, and average time of one execution.
    """

    adapter: str
    resident: bool | None = None
    correct: bool | None = None
    ops: int = 0
    on_cpu: int = 0
    findings: tuple[OpFinding, ...] = ()
    compile_seconds: float = 0.0
    run_seconds: float = 0.0


def verify_on_gpu(
    out: Path, golden_dir: Path | None, limit_s: float, progress: Callable[[str], None] = lambda _: None
) -> Verdict[GpuDetails]:
    """Verify a TFLite export in ``out`` on the GPU engine; each attempt is stopped after ``limit_s`` seconds.

    Raises:
        ArtifactError: the manifest is unreadable, or an artifact is missing.
        GoldenError: the golden cases are unreadable, altered, or of another checkpoint.
        MissingExtraError: there is no Vulkan driver.
    """
    export = open_export(out, golden_dir)
    manifest, cases = export.manifest, export.golden.cases
    components = []
    for entry in manifest.artifacts:
        progress(f"verify {entry.component} on the GPU engine with {len(cases)} golden cases")
        components.append(_judge(Subject(export, entry, cases), limit_s, progress))
    return Verdict(manifest.target, manifest.recipe.name, len(cases), tuple(components))


def _judge(subject: Subject, limit_s: float, progress: Callable[[str], None]) -> ComponentVerdict[GpuDetails]:
    path, inputs = subject.path, subject.inputs()
    run = execute_on_gpu(path, inputs, limit_s)
    log = read_log(run.log)
    try:
        ops = _graph_ops(path)
    except RuntimeFault as error:
        return subject.verdict(GpuDetails(log.adapter), [str(error)])
    findings = refused_ops(log.refusals, ops)
    parity, wrong = subject.compare(run.outputs) if run.outputs else (None, [])
    correct = not wrong if run.outputs else None
    if parity:
        wrong = [fault.of("all on the GPU, but wrong" if run.resident else "and wrong") for fault in wrong]
    faults = [*_refusal_faults(run, log, len(ops), findings), *wrong]
    if (run.failure or wrong) and not run.timed_out:
        search = Search(path, inputs[0], subject.tolerance.snr_db, limit_s, failing=run.failure is not None)
        culprit = first_bad_op(search, progress)
        findings += (culprit,) if culprit else ()
        faults.append(f"to blame first: {culprit}" if culprit else _NOBODY[search.failing])
    resident = None if run.failure else run.resident
    seconds = (run.compile_seconds, run.run_seconds / len(inputs))
    details = GpuDetails(log.adapter, resident, correct, len(ops), log.on_cpu, findings, *seconds)
    return subject.verdict(details, faults, parity)


def _refusal_faults(run: GpuExecution, log: EngineLog, count: int, findings: tuple[OpFinding, ...]) -> list[str]:
    if run.failure:
        return [f"{run.failure}; give it more with --limit" if run.timed_out else run.failure]
    if run.resident:
        return [f"the device refuses a request of the engine: {text}" for text in log.invalid[:1]]
    named = [str(finding) for finding in findings[:_SPELLED_OUT]]
    more = len(findings) - len(named)
    which = "; ".join([*named, f"and {more} more"] if more else named)
    return [f"{log.on_cpu} of {count} ops are left to the CPU, because of {len(findings)}: {which}"]


def run_on_gpu(path: Path, inputs: Arrays, limit_s: float) -> tuple[dict[str, Array], str]:
    """Execute one .tflite file once; return its outputs and a text that states how much of it ran on the GPU.

    Raises:
        MissingExtraError: there is no Vulkan driver.
        RuntimeFault: the engine failed, crashed or took more than ``limit_s`` seconds.
    """
    run = execute_on_gpu(path, [inputs], limit_s)
    if run.failure:
        raise RuntimeFault(f"{path.name}: {run.failure}: {words_of(run)}")
    log, count = read_log(run.log), len(_graph_ops(path))
    (outputs,) = run.outputs
    return outputs, f"{count - log.on_cpu} of {count} ops on the GPU ({log.adapter}), {log.on_cpu} on the CPU"
