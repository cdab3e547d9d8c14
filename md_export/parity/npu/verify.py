"""Verify every ONNX artifact of an export on a phone's NPU: check that all of it runs there, and its outputs.

The simulator of Qualcomm's backend executes the context that was compiled for the phone, without the CPU. If an export
has no such contexts, they are compiled temporarily. An artifact that would exceed one process's limits of time or
memory is compiled and executed block by block: see :mod:`md_export.parity.npu.blocks`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from md_export.errors import RuntimeFault, UsageError
from md_export.parity.chain import judge_chain
from md_export.parity.golden.case import GoldenCase
from md_export.parity.golden.surface import packed
from md_export.parity.metrics import Check, Fault
from md_export.parity.npu.blocks import Demand, NpuBlock, demand_of, least_of, run_in_blocks
from md_export.parity.opened_export import OpenedExport, open_export
from md_export.parity.subject import Subject
from md_export.parity.verdict import ComponentVerdict, Verdict, Verification
from md_export.spec.artifact import ArtifactEntry, artifact_path, context_path, files_of_context
from md_export.spec.names import SOCS, Soc
from md_export.spec.tensors import Arrays
from md_export.system.files import sha256_of
from md_export.system.workspace import scratch_folder
from md_export.targets.onnx.npu.process import (
    NpuLimits,
    NpuRun,
    RefusedOp,
    compile_for_npu,
    execute_on_npu,
    refusal,
    require_qnn,
)


@dataclass(frozen=True)
class NpuDetails:
    """Result of one artifact on the simulator of a phone's NPU.

    Attributes:
        nodes: number of nodes on the NPU, if it computes all of them; 0 if unknown.
        refused: nodes that the NPU would leave to the CPU.
        compile_seconds, compile_bytes: time and peak memory of the compiler.
        context_bytes: size of the compiled context.
        run_seconds: average time of one execution on the simulator, not on a phone.
        blocks: the blocks, if the artifact was executed block by block. The figures above are then sums over the blocks
            (maximum for ``compile_bytes``), and the verdict's parity contains the errors of all blocks.
        why: reason for an execution block by block; "" if the artifact was executed whole.
    """

    nodes: int = 0
    refused: tuple[RefusedOp, ...] = ()
    compile_seconds: float = 0.0
    compile_bytes: int = 0
    context_bytes: int = 0
    run_seconds: float = 0.0
    blocks: tuple[NpuBlock, ...] = ()
    why: str = ""

    @property
    def extent(self) -> str:
        """``whole``, or the number of blocks."""
        return f"{len(self.blocks)} blocks" if self.blocks else "whole"


@dataclass(frozen=True)
class _Phone:
    """Inputs of the verification on one phone; ``scratch``: folder for contexts that the export lacks.

    ``blocks``: always execute block by block; otherwise ``demands`` has the predicted cost of each whole component.
    """

    export: OpenedExport
    cases: Sequence[GoldenCase]
    soc: Soc
    limits: NpuLimits
    scratch: Path
    blocks: bool
    demands: Mapping[str, Demand | None]
    progress: Callable[[str], None]


def verify_on_npu(
    out: Path,
    golden_dir: Path | None,
    soc: str | None,
    cases: int | None,
    limits: NpuLimits,
    progress: Callable[[str], None] = lambda _: None,
    blocks: bool = False,
) -> tuple[Verification[NpuDetails], ...]:
    """Verify an ONNX export on NPUs and return one verdict for each phone.

    Args:
        out: folder of the export.
        golden_dir: folder of golden cases; None for those in ``out``.
        soc: name of a chip in SOCS; None for all chips that the recipe names.
        cases: number of golden cases to use; None for all.
        limits: limits of each process.
        blocks: execute block by block even if a whole artifact is within the limits.

    Raises:
        ArtifactError: the manifest is unreadable, or an artifact is missing.
        GoldenError: the golden cases are unreadable, altered, or of another checkpoint.
        MissingExtraError: the simulator is not installed.
        UsageError: neither ``soc`` nor the recipe names a phone, or the export is of another target.
    """
    require_qnn()
    export = open_export(out, golden_dir)
    recipe = export.manifest.recipe
    if recipe.target != "onnx" or recipe.form:
        raise UsageError(f"--npu compiles portable ONNX graphs, not {recipe.form or recipe.target}; leave it out")
    names = (soc,) if soc else recipe.npu
    if not names:
        raise UsageError(f"{out} was compiled for no phone; name one with --soc: {', '.join(SOCS)}")
    chosen = export.golden.cases[:cases]
    entries = () if blocks else export.manifest.artifacts
    demands = {entry.component: demand_of(artifact_path(out, entry)) for entry in entries}
    found = []
    for name in names:
        with scratch_folder() as scratch:
            phone = _Phone(export, chosen, SOCS[name], limits, scratch, blocks, demands, progress)
            found.append(_judge_phone(phone))
    return tuple(found)


def _judge_phone(phone: _Phone) -> Verification[NpuDetails]:
    """Return the verdict on all artifacts, and on the picture if the export makes one in one step."""
    manifest, golden = phone.export.manifest, phone.export.golden

    def tell(component: str) -> None:
        phone.progress(f"verify {component} on the NPU of {phone.soc.title} with {len(phone.cases)} golden cases")

    walked = judge_chain(phone.export, phone.cases, partial(_judge, phone), None, tell)
    name, count = manifest.recipe.name, len(phone.cases)
    result = Verdict(manifest.target, name, count, walked.verdicts, walked.picture, phone.soc.name)
    return Verification(manifest, result, golden, walked.pictures)


def _judge(
    phone: _Phone, subject: Subject, others: Sequence[Arrays]
) -> tuple[ComponentVerdict[NpuDetails], Sequence[Arrays]]:
    """Return a verdict and the artifact's outputs: for its golden inputs, then for the outputs of earlier artifacts."""
    entry, inputs = subject.entry, subject.inputs()
    batches = [*inputs, *(packed(phone.export.manifest.recipe, entry, batch) for batch in others)]
    why = _why_in_blocks(phone, entry, len(batches))
    engine, faults, outputs = _whole(phone, entry, batches) if why is None else _in_blocks(phone, entry, batches, why)
    if not outputs:
        return subject.verdict(engine, faults), []
    parity, wrong = subject.compare(outputs[: len(inputs)])
    if parity and wrong:
        wrong[-1] = Fault(Check.FIGURES, "; ".join([wrong[-1], *hints(entry, engine.blocks)]))
    return subject.verdict(engine, [*faults, *wrong], parity), outputs


def hints(entry: ArtifactEntry, blocks: Sequence[NpuBlock]) -> Iterator[str]:
    """Yield hints for an artifact that falls short of its thresholds."""
    if blocks:
        yield least_of(blocks)
    if entry.activations == "float16" and any(spec.name == "timestep" for spec in entry.inputs):
        yield "its time embedding is computed in float16 on the NPU: export with --rewrite fold_timestep"


# Engine details of a component, its faults, and its outputs; the outputs are empty if a fault prevents them.
_Executed = tuple[NpuDetails, list[str], Sequence[Arrays]]


def _whole(phone: _Phone, entry: ArtifactEntry, batches: list[Arrays]) -> _Executed:
    """Execute the artifact on each set of inputs; compile it first if the export holds no context of it."""
    context, found = _compiled(phone, entry)
    if found.failure or found.refused:
        return NpuDetails(refused=found.refused), [found.failure or refusal(found.refused)], []
    run = execute_on_npu(artifact_path(phone.export.out, entry), phone.soc, context, batches, phone.limits)
    failures = [Fault(Check.EXECUTION, run.failure)] if run.failure else []
    engine = NpuDetails(
        nodes=found.nodes,
        compile_seconds=found.compile_seconds,
        compile_bytes=found.peak_bytes,
        context_bytes=found.context_bytes,
        run_seconds=run.run_seconds / len(batches),
    )
    return engine, [*_altered_context(phone.export, context), *failures], run.outputs


def _why_in_blocks(phone: _Phone, entry: ArtifactEntry, batches: int) -> str | None:
    if phone.blocks:
        return "asked for"
    demand = phone.demands[entry.component]
    return None if demand is None else demand.too_much(phone.limits, batches)


def _in_blocks(phone: _Phone, entry: ArtifactEntry, batches: list[Arrays], why: str) -> _Executed:
    """Execute the artifact block by block, otherwise as :func:`_whole`; no outputs if any block has a fault."""
    names, path = [spec.name for spec in entry.outputs], artifact_path(phone.export.out, entry)
    with tempfile.TemporaryDirectory(prefix="blocks-", dir=phone.scratch) as scratch:
        try:
            found = run_in_blocks(path, phone.soc, batches, names, phone.limits, Path(scratch), phone.progress)
        except RuntimeFault as error:
            return NpuDetails(why=why), [Fault(Check.EXECUTION, str(error))], []
    faults = [f"block {item.title}: {fault}" for item in found.blocks for fault in item.faults]
    engine = NpuDetails(
        nodes=0 if any(item.refused for item in found.blocks) else sum(item.nodes for item in found.blocks),
        refused=tuple(op for item in found.blocks for op in item.refused),
        compile_seconds=sum(item.compile_seconds for item in found.blocks),
        compile_bytes=max(item.peak_bytes for item in found.blocks),
        context_bytes=sum(item.context_bytes for item in found.blocks),
        run_seconds=sum(item.run_seconds for item in found.blocks),
        blocks=found.blocks,
        why=why,
    )
    return engine, faults, [] if faults else found.outputs


def _compiled(phone: _Phone, entry: ArtifactEntry) -> tuple[Path, NpuRun]:
    """Return the export's context for the phone; compile one if the export has none."""
    for known in entry.contexts:
        if known.soc == phone.soc.name:
            compiled = NpuRun(
                nodes=known.nodes,
                context_bytes=known.bytes,
                compile_seconds=known.seconds,
                peak_bytes=known.peak_bytes,
            )
            return context_path(phone.export.out, entry, known.soc), compiled
    context = context_path(phone.scratch, entry, phone.soc.name)
    return context, compile_for_npu(artifact_path(phone.export.out, entry), phone.soc, context, phone.limits)


def _altered_context(export: OpenedExport, context: Path) -> list[Fault]:
    """Return faults for files of the export's context that are missing or differ from the manifest."""
    if not context.is_relative_to(export.out):
        return []
    names = {path.relative_to(export.out).as_posix(): path for path in files_of_context(context)}
    listed = export.manifest.files
    altered = [name for name, path in names.items() if not path.is_file() or listed.get(name) != sha256_of(path)]
    return [Fault(Check.BYTES, f"{name} is not the file of the manifest; it was altered") for name in altered]
