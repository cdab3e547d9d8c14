"""Compile ONNX artifacts for Hexagon NPUs and run them on the simulator, each time in a process of its own."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from md_export.errors import ConversionError, MissingExtraError, RuntimeFault
from md_export.spec.artifact import ArtifactEntry, NpuContext, artifact_path, context_path, files_of_context
from md_export.spec.snapdragon import SOCS, Soc
from md_export.spec.tensors import Array, Arrays
from md_export.system.memory import installed_bytes
from md_export.targets.execution import exchange
from md_export.targets.onnx.npu.refused import RefusedOp
from md_export.worker.calling import call_worker, run_worker

# Refused nodes that a one-line error spells out.
_SPELLED_OUT: Final = 3
_SHARE: Final = 0.9


@dataclass(frozen=True)
class NpuLimits:
    """Of one process: seconds, None for no end; and bytes of memory."""

    seconds: float | None = None
    most_bytes: int = field(default_factory=lambda: int(_SHARE * installed_bytes()))


@dataclass(frozen=True)
class Compilation:
    """What the compiler made of one graph.

    Attributes:
        context: what the manifest says of it; None where the compiler refused the graph or failed.
        refused: nodes that only the CPU would compute.
        failure: why it failed otherwise: its error, a crash, a limit.
    """

    context: NpuContext | None
    refused: tuple[RefusedOp, ...] = ()
    failure: str | None = None


@dataclass(frozen=True)
class NpuExecution:
    """What the simulator did; no outputs where it failed. Seconds are the simulator's, and no phone's."""

    outputs: list[dict[str, Array]]
    failure: str | None = None
    run_seconds: float = 0.0
    peak_bytes: int = 0


@dataclass(frozen=True)
class NpuTrial:
    """A graph compiled and executed, and the same by the CPU.

    Attributes:
        outputs: what the simulator made of each set of inputs; none where it failed.
        wanted: what the CPU made.
        refused: nodes that only the CPU would compute.
        failure: why it failed otherwise.
        nodes: that the NPU has, if it has all.
        context_bytes: of what the compiler made.
        compile_seconds, run_seconds: the second of all executions.
        peak_bytes: most memory that all of it held.
    """

    outputs: list[dict[str, Array]]
    wanted: list[dict[str, Array]]
    refused: tuple[RefusedOp, ...]
    failure: str | None
    nodes: int
    context_bytes: int
    compile_seconds: float
    run_seconds: float
    peak_bytes: int


def require_qnn() -> None:
    """Raise :class:`MissingExtraError` where Qualcomm's backend is not installed. Imports nothing."""
    if importlib.util.find_spec("onnxruntime_qnn") is None:
        raise MissingExtraError(
            "compiling for a Snapdragon NPU needs onnxruntime_qnn, which is not installed: "
            "pip install 'md-export[qnn]' (there are wheels for Linux on x86-64 with glibc 2.35 or newer)"
        )


def compile_for_npu(graph: Path, soc: Soc, context: Path, limits: NpuLimits) -> Compilation:
    """Compile a saved graph and write ``context``, its binary beside it; whatever happens is a result."""
    context.parent.mkdir(parents=True, exist_ok=True)
    request = {"path": str(graph), "soc": dataclasses.asdict(soc), "context": str(context)}
    ended = run_worker("compile_for_npu", request, limits.seconds, limits.most_bytes)
    answer = ended.answer or {"message": ended.death}
    if "message" in answer:
        return Compilation(None, failure=answer["message"])
    refused = _refused(answer)
    if refused:
        return Compilation(None, refused)
    size = sum(path.stat().st_size for path in files_of_context(context))
    return Compilation(NpuContext(soc.name, size, answer["nodes"], answer["seconds"], ended.peak_bytes))


def execute_on_npu(graph: Path, soc: Soc, context: Path, batches: Sequence[Arrays], limits: NpuLimits) -> NpuExecution:
    """Run what was compiled from ``graph`` on each set of inputs; whatever happens is a result."""
    with exchange(batches) as files:
        request = {"path": str(graph), "soc": dataclasses.asdict(soc), "context": str(context)}
        ended = run_worker("execute_on_npu", {**request, **files.request}, limits.seconds, limits.most_bytes)
        answer = ended.answer or {"message": ended.death}
        if "message" in answer:
            return NpuExecution([], answer["message"], peak_bytes=ended.peak_bytes)
        return NpuExecution(files.read(), None, answer["run_seconds"], ended.peak_bytes)


def cut_for_npu(graph: Path, blocks: int, folder: Path) -> list[dict[str, Any]]:
    """Write a saved graph in blocks: fields of :class:`md_export.targets.onnx.npu.cut.CutBlock` for each.

    Raises:
        RuntimeFault: it cannot be cut.
    """
    request = {"path": str(graph), "blocks": blocks, "folder": str(folder)}
    found: list[dict[str, Any]] = call_worker("cut_for_npu", request, RuntimeFault, graph.name)["blocks"]
    return found


def try_on_npu(graph: Path, exact: Path, soc: Soc, batches: Sequence[Arrays], limits: NpuLimits) -> NpuTrial:
    """Compile ``graph``, run it on each set of inputs, and ``exact`` on the CPU; whatever the NPU does is a result.

    Raises:
        RuntimeFault: the CPU does not run ``exact``.
    """
    with exchange(batches, "wanted") as files:
        request = {"path": str(graph), "exact": str(exact), "soc": dataclasses.asdict(soc)}
        asked = {**request, **files.request, "folder": str(files.folder)}
        ended = run_worker("try_on_npu", asked, limits.seconds, limits.most_bytes)
        answer = ended.answer or {"message": ended.death}
        wanted = files.read("wanted")
        if not wanted:
            raise RuntimeFault(f"{graph.name} on the CPU: {answer['message']}")
        return NpuTrial(
            outputs=files.read(),
            wanted=wanted,
            refused=_refused(answer),
            failure=answer.get("message"),
            nodes=answer.get("nodes", 0),
            context_bytes=answer.get("bytes", 0),
            compile_seconds=answer.get("seconds", 0.0),
            run_seconds=answer.get("run_seconds", 0.0),
            peak_bytes=ended.peak_bytes,
        )


def _refused(answer: dict[str, Any]) -> tuple[RefusedOp, ...]:
    return tuple(RefusedOp(**{**op, "modules": tuple(op["modules"])}) for op in answer.get("refused", ()))


def compile_contexts(
    names: Sequence[str], folder: Path, entries: Sequence[ArtifactEntry], progress: Callable[[str], None]
) -> tuple[ArtifactEntry, ...]:
    """Compile each artifact of an export for each chip; the contexts lie beside them.

    Args:
        names: of chips in SOCS.

    Raises:
        ConversionError: a chip's compiler refuses an operation, which is named with its module, or fails.
        MissingExtraError: there is no compiler here.
    """
    if names:
        require_qnn()
    return tuple(
        dataclasses.replace(entry, contexts=tuple(_compiled(SOCS[name], folder, entry, progress) for name in names))
        for entry in entries
    )


def _compiled(soc: Soc, folder: Path, entry: ArtifactEntry, progress: Callable[[str], None]) -> NpuContext:
    progress(f"compile {entry.component} for the NPU of {soc.title}")
    found = compile_for_npu(artifact_path(folder, entry), soc, context_path(folder, entry, soc.name), NpuLimits())
    if found.context is None:
        raise ConversionError(f"{entry.component} on {soc.name}: {found.failure or refusal(found.refused)}")
    return found.context


def refusal(ops: Sequence[RefusedOp]) -> str:
    """What the NPU does not take, in a line."""
    named = [str(op) for op in ops[:_SPELLED_OUT]]
    more = [f"and {len(ops) - len(named)} more"] if len(ops) > len(named) else []
    return f"the NPU leaves {len(ops)} operations to the CPU: {'; '.join([*named, *more])}"
