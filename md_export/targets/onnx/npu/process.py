"""Compile ONNX artifacts for Hexagon NPUs and run them on the simulator, each time in a separate process."""

from __future__ import annotations

import dataclasses
import importlib.util
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from md_export.errors import ConversionError, MissingExtraError, RuntimeFault
from md_export.spec.artifact import ArtifactEntry, NpuContext, artifact_path, context_path, files_of_context
from md_export.spec.names import SOCS, Soc
from md_export.spec.tensors import Array, Arrays, load_batches, save_batches
from md_export.system.isolation import Ended, Limits, Result, attempt, isolated
from md_export.system.memory import installed_bytes

# Number of refused nodes that a one-line error names.
_SPELLED_OUT: Final = 3
_SHARE: Final = 0.9
_WANTED: Final = "wanted.safetensors"


@dataclass(frozen=True)
class RefusedOp:
    """One node of a graph that the NPU does not take.

    Attributes:
        operator: its kind.
        node: its name in the graph.
        modules: paths of the torch modules that it computes; none where the graph does not tell.
    """

    operator: str
    node: str
    modules: tuple[str, ...] = ()

    def __str__(self) -> str:
        where = " and ".join(filter(None, self.modules))
        return f"{self.operator} of {where or 'the component itself'} ({self.node})"


@dataclass(frozen=True)
class Compiled:
    """Nodes of the graph that the NPU has, those that it refused, and seconds; nothing is written where it refused."""

    nodes: int
    refused: tuple[RefusedOp, ...]
    seconds: float


@dataclass(frozen=True)
class SimulatorRun:
    """Outputs for each set of inputs; seconds of loading, and of all executions, by the simulator."""

    outputs: list[dict[str, Array]]
    load_seconds: float
    run_seconds: float


@dataclass(frozen=True)
class CutBlock:
    """One block.

    Attributes:
        file: its graph.
        exact: the same in float32, for the CPU; may be the same file.
        title: the torch modules that it computes.
        inputs, outputs: values of the whole graph, by their names there.
    """

    file: str
    exact: str
    title: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class NpuLimits:
    """Limits of one process: seconds (None for no limit) and bytes of memory."""

    seconds: float | None = None
    most_bytes: int = field(default_factory=lambda: int(_SHARE * installed_bytes()))


@dataclass(frozen=True)
class Compilation:
    """Result of compiling one graph.

    Attributes:
        context: manifest entry of the compiled context; None if the compiler refused the graph or failed.
        refused: nodes that only the CPU would compute.
        failure: other reason of a failure: the compiler's error, a crash, a limit.
    """

    context: NpuContext | None
    refused: tuple[RefusedOp, ...] = ()
    failure: str | None = None


@dataclass(frozen=True)
class NpuExecution:
    """Result of a run on the simulator, without outputs if it failed; seconds are the simulator's, not a phone's."""

    outputs: list[dict[str, Array]]
    failure: str | None = None
    run_seconds: float = 0.0
    peak_bytes: int = 0


@dataclass(frozen=True)
class NpuTrial:
    """Result of a graph compiled and executed for the NPU, and of the same graph on the CPU.

    Attributes:
        outputs: outputs of the simulator for each set of inputs; empty if it failed.
        wanted: outputs of the CPU.
        refused: nodes that only the CPU would compute.
        failure: other reason of a failure.
        nodes: number of nodes on the NPU, if it computes all of them.
        context_bytes: size of the compiled context.
        compile_seconds, run_seconds: time of the compilation, and of all executions together.
        peak_bytes: peak memory of the whole process.
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
    """Raise :class:`MissingExtraError` if Qualcomm's backend is not installed; the check imports nothing."""
    if importlib.util.find_spec("onnxruntime_qnn") is None:
        raise MissingExtraError(
            "compiling for a Snapdragon NPU needs onnxruntime_qnn, which is not installed: "
            "pip install 'md-export[qnn]' (there are wheels for Linux on x86-64 with glibc 2.35 or newer)"
        )


@dataclass(frozen=True)
class NpuJob:
    """A saved graph, a chip, the compiled context, and the inputs of each execution."""

    graph: Path
    soc: Soc
    context: Path
    batches: Sequence[Arrays] = ()


@dataclass(frozen=True)
class TrialJob:
    """A graph to compile and run on a chip, its float32 version for the CPU, inputs, and a folder for results."""

    graph: Path
    exact: Path
    soc: Soc
    batches: Sequence[Arrays]
    folder: Path


@dataclass(frozen=True)
class Tried:
    """Compilation of a graph, size of the context, and its run; no run if an operation was refused."""

    compiled: Compiled
    context_bytes: int = 0
    run: SimulatorRun | None = None


@dataclass(frozen=True)
class CutJob:
    """A saved graph, the number of blocks to cut it into, and the folder for them."""

    graph: Path
    blocks: int
    folder: Path


def compile_for_npu(graph: Path, soc: Soc, context: Path, limits: NpuLimits) -> Compilation:
    """Compile a saved graph and write ``context`` with its binary beside it; failures are returned, not raised."""
    context.parent.mkdir(parents=True, exist_ok=True)
    ended = attempt(compile_here, NpuJob(graph, soc, context), Limits(limits.seconds, limits.most_bytes))
    if ended.result is None:
        return Compilation(None, failure=_failure(ended))
    if ended.result.refused:
        return Compilation(None, ended.result.refused)
    size = sum(path.stat().st_size for path in files_of_context(context))
    return Compilation(NpuContext(soc.name, size, ended.result.nodes, ended.result.seconds, ended.peak_bytes))


def compile_here(job: NpuJob) -> Compiled:
    """Compile a saved graph in this process."""
    from md_export.targets.onnx.npu.context import compile_context

    return compile_context(job.graph, job.soc, job.context)


def execute_on_npu(graph: Path, soc: Soc, context: Path, batches: Sequence[Arrays], limits: NpuLimits) -> NpuExecution:
    """Run the context compiled from ``graph`` on each set of inputs; failures are returned, not raised."""
    ended = attempt(run_here, NpuJob(graph, soc, context, batches), Limits(limits.seconds, limits.most_bytes))
    if ended.result is None:
        return NpuExecution([], _failure(ended), peak_bytes=ended.peak_bytes)
    return NpuExecution(ended.result.outputs, None, ended.result.run_seconds, ended.peak_bytes)


def run_here(job: NpuJob) -> SimulatorRun:
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


def try_on_npu(graph: Path, exact: Path, soc: Soc, batches: Sequence[Arrays], limits: NpuLimits) -> NpuTrial:
    """Compile ``graph`` and run it on each set of inputs, and run ``exact`` on the CPU; NPU failures are returned.

    Raises:
        RuntimeFault: the CPU cannot run ``exact``.
    """
    with tempfile.TemporaryDirectory(prefix="md-export-") as scratch:
        job = TrialJob(graph, exact, soc, batches, Path(scratch))
        ended = attempt(try_here, job, Limits(limits.seconds, limits.most_bytes))
        wanted = Path(scratch) / _WANTED
        if not wanted.is_file():
            raise RuntimeFault(f"{graph.name} on the CPU: {_failure(ended)}")
        tried = ended.result or Tried(Compiled(0, (), 0.0))
        return NpuTrial(
            outputs=tried.run.outputs if tried.run else [],
            wanted=load_batches(wanted),
            refused=tried.compiled.refused,
            failure=_failure(ended),
            nodes=tried.compiled.nodes,
            context_bytes=tried.context_bytes,
            compile_seconds=tried.compiled.seconds,
            run_seconds=tried.run.run_seconds if tried.run else 0.0,
            peak_bytes=ended.peak_bytes,
        )


def try_here(job: TrialJob) -> Tried:
    """Run the float32 graph on the CPU, then compile the graph and run it on the simulator, in this process.

    The CPU's outputs go to a file, so they are available even if the compiler then ends the process.
    """
    from md_export.targets.onnx.npu.context import compile_context, run_on_npu
    from md_export.targets.onnx.run import UNOPTIMIZED, load

    exact = load(job.exact, UNOPTIMIZED)
    save_batches([exact.run(batch) for batch in job.batches], job.folder / _WANTED)
    context = job.folder / job.graph.name
    compiled = compile_context(job.graph, job.soc, context)
    if compiled.refused:
        return Tried(compiled)
    run = run_on_npu(context, job.soc, job.batches)
    return Tried(compiled, sum(file.stat().st_size for file in files_of_context(context)), run)


def _failure(ended: Ended[Result]) -> str | None:
    return str(ended.error) if ended.error else ended.death or None


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
    """Return one line that names the operations that the NPU does not compute."""
    named = [str(op) for op in ops[:_SPELLED_OUT]]
    more = [f"and {len(ops) - len(named)} more"] if len(ops) > len(named) else []
    return f"the NPU leaves {len(ops)} operations to the CPU: {'; '.join([*named, *more])}"
