"""Every ONNX artifact of an export on a phone's NPU: is all of it there, and is it right there?

What is executed is the context that was compiled for the phone, by the simulator of Qualcomm's backend, with no help of
the CPU. An export that holds no such contexts has them compiled for the occasion. What would take more time or memory
than one process may have is compiled and executed block by block: see :mod:`md_export.parity.npu.blocks`.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from md_export.errors import RuntimeFault, UsageError
from md_export.models.sampling.generate import Float32, picture_from
from md_export.parity.chain import CHAIN, chain_inputs
from md_export.parity.golden.case import GoldenCase
from md_export.parity.golden.surface import each_call, golden_cases, packed
from md_export.parity.judge import altered_faults, judge_picture, shortfalls, worst_parity
from md_export.parity.metrics import Check, Fault
from md_export.parity.npu.blocks import Demand, NpuBlock, demand_of, least_of, run_in_blocks
from md_export.parity.npu.verdict import NpuComponent, NpuResult, NpuVerification
from md_export.parity.opened_export import OpenedExport, open_export
from md_export.spec.artifact import ArtifactEntry, artifact_path, context_path, files_of_context
from md_export.spec.snapdragon import SOCS, Soc
from md_export.spec.tensors import Array, Arrays, joined
from md_export.system.files import sha256_of
from md_export.targets.onnx.npu.process import (
    Compilation,
    NpuLimits,
    compile_for_npu,
    execute_on_npu,
    refusal,
    require_qnn,
)


@dataclass(frozen=True)
class _Phone:
    """What is judged on one phone, and where contexts go that the export lacks.

    ``blocks``: always block by block; else ``demands`` has what each component takes as a whole.
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
) -> NpuVerification:
    """Judge an ONNX export as NPUs execute it.

    Args:
        out: the export.
        golden_dir: by default those that lie in ``out``.
        soc: name in SOCS; None for all that the recipe names.
        cases: how many golden cases; None for all.
        limits: of each process.
        blocks: block by block even where a whole artifact is within the limits.

    Raises:
        ArtifactError: the manifest is unreadable, or an artifact is missing.
        GoldenError: the golden cases are unreadable, altered, or of another checkpoint.
        MissingExtraError: there is no simulator here.
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
    components: list[NpuComponent] = []
    pictures: dict[str, tuple[Float32, ...]] = {}
    for name in names:
        with tempfile.TemporaryDirectory(prefix="md-export-") as scratch:
            phone = _Phone(export, chosen, SOCS[name], limits, Path(scratch), blocks, demands, progress)
            verdicts, made = _judge_phone(phone)
        components += verdicts
        pictures |= {} if made is None else {name: made}
    judged = {name: judge_picture(export.manifest, chosen, made) for name, made in pictures.items()}
    return NpuVerification(NpuResult(recipe.name, len(chosen), tuple(components), judged), pictures)


def _judge_phone(phone: _Phone) -> tuple[list[NpuComponent], tuple[Float32, ...] | None]:
    """Verdicts, and pictures; none where the chain broke off, None where the export makes none in one step."""
    manifest = phone.export.manifest
    chain: dict[str, list[Array]] = {}
    verdicts = []
    for entry in manifest.artifacts:
        phone.progress(f"verify {entry.component} on the NPU of {phone.soc.title} with {len(phone.cases)} golden cases")
        verdict, chain[entry.component] = _judge(phone, entry, chain)
        verdicts.append(verdict)
    if manifest.ddim is not None or not set(CHAIN) <= set(chain):
        return verdicts, None
    return verdicts, tuple(picture_from(image) for image in chain["vae_decoder"])


def _judge(phone: _Phone, entry: ArtifactEntry, chain: dict[str, list[Array]]) -> tuple[NpuComponent, list[Array]]:
    """A verdict, and what the artifact makes of what those before it made."""
    inputs, wanted = golden_cases(phone.export.manifest.recipe, entry, phone.cases)
    batches = [*inputs, *_following(phone, entry, chain)]
    why = _why_in_blocks(phone, entry, len(batches))
    start, outputs = _whole(phone, entry, batches) if why is None else _in_blocks(phone, entry, batches, why)
    if not outputs:
        return start, []
    labels = [call.label for call in each_call(entry.component, phone.cases)]
    parity, wrong = worst_parity(outputs[: len(inputs)], wanted, labels)
    short = shortfalls(parity, start.tolerance) if parity else []
    if short:
        short[-1] = Fault(Check.FIGURES, "; ".join([short[-1], *hints(entry, start.blocks)]))
    verdict = dataclasses.replace(start, faults=(*start.faults, *wrong, *short), parity=parity)
    return verdict, outputs if entry.component not in CHAIN[1:] else outputs[len(inputs) :]


def hints(entry: ArtifactEntry, blocks: Sequence[NpuBlock]) -> Iterator[str]:
    """Where to look, of an artifact that falls short."""
    if blocks:
        yield least_of(blocks)
    if entry.activations == "float16" and any(spec.name == "timestep" for spec in entry.inputs):
        yield "its time embedding is computed in float16 on the NPU: export with --rewrite fold_timestep"


def _start(phone: _Phone, entry: ArtifactEntry) -> NpuComponent:
    """A verdict on the file alone."""
    tolerance = phone.export.manifest.recipe.tolerances[entry.component]
    faults = altered_faults(phone.export.out, entry)
    return NpuComponent(entry.component, entry.file, phone.soc.name, tolerance, tuple(faults))


def _whole(phone: _Phone, entry: ArtifactEntry, batches: list[Arrays]) -> tuple[NpuComponent, list[Array]]:
    """Placement, and what the artifact makes of each set of inputs; no outputs where a fault forbids it."""
    start = _start(phone, entry)
    context, found = _compiled(phone, entry)
    if found.context is None:
        words = found.failure or refusal(found.refused)
        return dataclasses.replace(start, faults=(*start.faults, words), refused=found.refused), []
    run = execute_on_npu(artifact_path(phone.export.out, entry), phone.soc, context, batches, phone.limits)
    failures = [Fault(Check.EXECUTION, run.failure)] if run.failure else []
    verdict = dataclasses.replace(
        start,
        faults=(*start.faults, *_altered_context(phone.export, context), *failures),
        nodes=found.context.nodes,
        compile_seconds=found.context.seconds,
        compile_bytes=found.context.peak_bytes,
        context_bytes=found.context.bytes,
        run_seconds=run.run_seconds / len(batches),
    )
    return verdict, [joined(made) for made in run.outputs]


def _why_in_blocks(phone: _Phone, entry: ArtifactEntry, batches: int) -> str | None:
    if phone.blocks:
        return "asked for"
    demand = phone.demands[entry.component]
    return None if demand is None else demand.too_much(phone.limits, batches)


def _in_blocks(
    phone: _Phone, entry: ArtifactEntry, batches: list[Arrays], why: str
) -> tuple[NpuComponent, list[Array]]:
    """As :func:`_whole`, block by block; no outputs where the NPU did not make all of them, and rightly."""
    start = dataclasses.replace(_start(phone, entry), why=why)
    names = [spec.name for spec in entry.outputs]
    with tempfile.TemporaryDirectory(prefix="blocks-", dir=phone.scratch) as scratch:
        path = artifact_path(phone.export.out, entry)
        try:
            found = run_in_blocks(path, phone.soc, batches, names, phone.limits, Path(scratch), phone.progress)
        except RuntimeFault as error:
            return dataclasses.replace(start, faults=(*start.faults, Fault(Check.EXECUTION, str(error)))), []
    faults = [f"block {item.title}: {fault}" for item in found.blocks for fault in item.faults]
    verdict = dataclasses.replace(
        start,
        faults=(*start.faults, *faults),
        nodes=0 if any(item.refused for item in found.blocks) else sum(item.nodes for item in found.blocks),
        refused=tuple(op for item in found.blocks for op in item.refused),
        compile_seconds=sum(item.compile_seconds for item in found.blocks),
        compile_bytes=max(item.peak_bytes for item in found.blocks),
        context_bytes=sum(item.context_bytes for item in found.blocks),
        run_seconds=sum(item.run_seconds for item in found.blocks),
        blocks=found.blocks,
    )
    return verdict, [] if faults else [joined(made) for made in found.outputs]


def _compiled(phone: _Phone, entry: ArtifactEntry) -> tuple[Path, Compilation]:
    """The context that the export holds for the phone; else one that is compiled now."""
    for known in entry.contexts:
        if known.soc == phone.soc.name:
            return context_path(phone.export.out, entry, known.soc), Compilation(known)
    context = context_path(phone.scratch, entry, phone.soc.name)
    return context, compile_for_npu(artifact_path(phone.export.out, entry), phone.soc, context, phone.limits)


def _altered_context(export: OpenedExport, context: Path) -> list[Fault]:
    """Whether a context that the export holds is the one that its manifest lists."""
    if not context.is_relative_to(export.out):
        return []
    names = {path.relative_to(export.out).as_posix(): path for path in files_of_context(context)}
    listed = export.manifest.files
    altered = [name for name, path in names.items() if not path.is_file() or listed.get(name) != sha256_of(path)]
    return [Fault(Check.BYTES, f"{name} is not the file of the manifest; it was altered") for name in altered]


def _following(phone: _Phone, entry: ArtifactEntry, chain: dict[str, list[Array]]) -> list[Arrays]:
    """Inputs as the artifacts before it made them; none for those that take what the golden cases have."""
    manifest = phone.export.manifest
    if entry.component not in CHAIN[1:] or manifest.ddim is not None:
        return []
    return [packed(manifest.recipe, entry, batch) for batch in chain_inputs(manifest, entry, phone.cases, chain)]
