"""Compile ONNX artifacts for Hexagon NPUs and run them on the simulator, each time in a separate process."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from md_export.errors import ConversionError, MissingExtraError, RuntimeFault
from md_export.spec.artifact import ArtifactEntry, NpuContext, artifact_path, context_path
from md_export.spec.names import SOCS, Soc
from md_export.spec.tensors import Array, Arrays, load_batches, save_batches
from md_export.system.isolation import Ended, Limits, attempt, isolated
from md_export.system.memory import installed_bytes
from md_export.system.workspace import scratch_folder

# Number of refused nodes that a one-line error names.
_SPELLED_OUT: Final = 3
_SHARE: Final = 0.9
_WANTED: Final = "wanted.safetensors"


@dataclass(frozen=True)
class RefusedOp:
    """One node of a graph that the NPU refuses.

    Attributes:
        operator: kind of the node.
        node: name of the node in the graph.
        modules: paths of the torch modules that it computes; empty if not recorded.
    """

    operator: str
    node: str
    modules: tuple[str, ...] = ()

    def __str__(self) -> str:
        where = " and ".join(filter(None, self.modules))
        return f"{self.operator} of {where or 'the component itself'} ({self.node})"


@dataclass(frozen=True)
class NpuRun:
    """Result of a graph on an NPU: it was compiled, or executed by the simulator, or both.

    Attributes:
        outputs: one dict for each set of inputs; empty if it was not executed.
        refused: nodes that only the CPU would compute; nothing is written or executed then.
        failure: other reason for a missing context or missing outputs: the compiler's error, a crash, a limit.
        nodes: number of nodes on the NPU, if it computes all of them.
        context_bytes: size of the compiled context.
        compile_seconds, run_seconds: time of the compilation, and of all executions together, on the simulator and not
            on a phone.
        peak_bytes: peak memory of the whole process.
        wanted: outputs of the CPU, if the graph ran on both.
    """

    outputs: list[dict[str, Array]] = field(default_factory=list)
    refused: tuple[RefusedOp, ...] = ()
    failure: str | None = None
    nodes: int = 0
    context_bytes: int = 0
    compile_seconds: float = 0.0
    run_seconds: float = 0.0
    peak_bytes: int = 0
    wanted: list[dict[str, Array]] = field(default_factory=list)


@dataclass(frozen=True)
class CutBlock:
    """One block of a cut graph.

    Attributes:
        file: graph of the block.
        exact: the same graph in float32, for the CPU; may be the same file.
        title: the torch modules that it computes.
        inputs, outputs: names of values in the whole graph.
    """

    file: str
    exact: str
    title: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class NpuLimits(Limits):
    """Limits of one process: seconds (None for no limit) and bytes of memory."""

    most_bytes: int = field(default_factory=lambda: int(_SHARE * installed_bytes()))


def require_qnn() -> None:
    """Raise :class:`MissingExtraError` if Qualcomm's backend is not installed; the check imports nothing."""
    if importlib.util.find_spec("onnxruntime_qnn") is None:
        raise MissingExtraError(
            "compiling for a Snapdragon NPU needs onnxruntime_qnn, which is not installed: "
            "pip install 'md-export[qnn]' (there are wheels for Linux on x86-64 with glibc 2.35 or newer)"
        )


@dataclass(frozen=True)
class NpuJob:
    """A saved graph, a chip, the compiled context, inputs of each execution, and the graph in float32 for the CPU."""

    graph: Path
    soc: Soc
    context: Path
    batches: Sequence[Arrays] = ()
    exact: Path | None = None


@dataclass(frozen=True)
class CutJob:
    """A saved graph, the number of blocks to cut it into, and the folder for them."""

    graph: Path
    blocks: int
    folder: Path


def compile_for_npu(graph: Path, soc: Soc, context: Path, limits: NpuLimits) -> NpuRun:
    """Compile a saved graph and write ``context`` with its binary beside it; failures are returned, not raised."""
    context.parent.mkdir(parents=True, exist_ok=True)
    return _ended(attempt(compile_here, NpuJob(graph, soc, context), limits))


def compile_here(job: NpuJob) -> NpuRun:
    """Compile a saved graph in this process."""
    from md_export.targets.onnx.npu.context import compile_context

    return compile_context(job.graph, job.soc, job.context)


def execute_on_npu(graph: Path, soc: Soc, context: Path, batches: Sequence[Arrays], limits: NpuLimits) -> NpuRun:
    """Run the context compiled from ``graph`` on each set of inputs; failures are returned, not raised."""
    return _ended(attempt(run_here, NpuJob(graph, soc, context, batches), limits))


def run_here(job: NpuJob) -> NpuRun:
    """Run a compiled graph in this process."""
    from md_export.targets.onnx.npu.context import check_context, run_on_npu

    check_context(job.context, job.graph, job.soc)
    return run_on_npu(job.context, job.soc, job.batches)


def cut_for_npu(graph: Path, blocks: int, folder: Path) -> tuple[CutBlock, ...]:
    """Cut a saved graph into blocks and write them to ``folder``.

    Raises:
        RuntimeFault: the graph cannot be cut.
    """
    return isolated(cut_here, RuntimeFault, graph.name)(CutJob(graph, blocks, folder))


def cut_here(job: CutJob) -> tuple[CutBlock, ...]:
    """Cut a saved graph in this process."""
    from md_export.targets.onnx.npu.cut import cut

    return cut(job.graph, job.blocks, job.folder)


def try_on_npu(graph: Path, exact: Path, soc: Soc, batches: Sequence[Arrays], limits: NpuLimits) -> NpuRun:
    """Compile ``graph`` and run it on each set of inputs, and run ``exact`` on the CPU; NPU failures are returned.

    Raises:
        RuntimeFault: the CPU cannot run ``exact``.
    """
    with scratch_folder() as scratch:
        tried = _ended(attempt(try_here, NpuJob(graph, soc, scratch / graph.name, batches, exact), limits))
        wanted = scratch / _WANTED
        if not wanted.is_file():
            raise RuntimeFault(f"{graph.name} on the CPU: {tried.failure}")
        return replace(tried, wanted=load_batches(wanted))


def try_here(job: NpuJob) -> NpuRun:
    """Run the float32 graph on the CPU, then compile the graph and run it on the simulator, in this process.

    The CPU's outputs go to a file, so they are available even if the compiler then ends the process.
    """
    from md_export.targets.onnx.npu.context import compile_context, run_on_npu
    from md_export.targets.onnx.run import UNOPTIMIZED, load

    exact = load(job.exact or job.graph, UNOPTIMIZED)
    save_batches([exact.run(batch) for batch in job.batches], job.context.with_name(_WANTED))
    compiled = compile_context(job.graph, job.soc, job.context)
    if compiled.refused:
        return compiled
    run = run_on_npu(job.context, job.soc, job.batches)
    return replace(compiled, outputs=run.outputs, run_seconds=run.run_seconds)


def _ended(ended: Ended[NpuRun]) -> NpuRun:
    return replace(ended.result or NpuRun(), failure=ended.failure, peak_bytes=ended.peak_bytes)


def compile_contexts(
    names: Sequence[str], folder: Path, entries: Sequence[ArtifactEntry], progress: Callable[[str], None]
) -> tuple[ArtifactEntry, ...]:
    """Compile each artifact of an export for each chip; the contexts are written beside the artifacts.

    Args:
        names: names of chips in SOCS.

    Raises:
        ConversionError: a chip's compiler fails, or refuses an operation; the message names it with its module.
        MissingExtraError: the compiler is not installed.
    """
    if names:
        require_qnn()
    return tuple(
        replace(entry, contexts=tuple(_compiled(SOCS[name], folder, entry, progress) for name in names))
        for entry in entries
    )


def _compiled(soc: Soc, folder: Path, entry: ArtifactEntry, progress: Callable[[str], None]) -> NpuContext:
    progress(f"compile {entry.component} for the NPU of {soc.title}")
    found = compile_for_npu(artifact_path(folder, entry), soc, context_path(folder, entry, soc.name), NpuLimits())
    if found.failure or found.refused:
        raise ConversionError(f"{entry.component} on {soc.name}: {found.failure or refusal(found.refused)}")
    return NpuContext(soc.name, found.context_bytes, found.nodes, found.compile_seconds, found.peak_bytes)


def refusal(ops: Sequence[RefusedOp]) -> str:
    """Return one line that names the operations that the NPU does not compute."""
    named = [str(op) for op in ops[:_SPELLED_OUT]]
    more = [f"and {len(ops) - len(named)} more"] if len(ops) > len(named) else []
    return f"the NPU leaves {len(ops)} operations to the CPU: {'; '.join([*named, *more])}"
