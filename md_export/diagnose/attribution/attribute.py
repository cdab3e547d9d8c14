"""Compare an artifact with torch module by module, and find the module that it computes wrongly."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from md_export.diagnose.attribution.blame import Located, Search, remedies
from md_export.diagnose.attribution.walk import Seen, Walker
from md_export.engine.hops import Hop, Part, hops_of, opened
from md_export.errors import ArtifactError, RuntimeFault
from md_export.parity.golden.case import GoldenCase
from md_export.parity.golden.surface import each_call
from md_export.parity.metrics import snr_db
from md_export.parity.rewritten_module import Rewritten
from md_export.spec.artifact import ArtifactEntry, artifact_path, is_unchanged
from md_export.spec.manifest import Manifest, read_manifest
from md_export.spec.tensors import Arrays, joined
from md_export.system.isolation import isolated
from md_export.targets import TARGETS, target_of
from md_export.targets.contract import ShownByExplorer, Target
from md_export.targets.operations import ExplorerGraph
from md_export.targets.stored_graph import Step


@dataclass(frozen=True)
class ModuleError:
    """Error of one torch module's output inside an artifact.

    Attributes:
        path: path of the module in the rewritten component; empty for the component itself.
        kind: class of the module.
        cumulative_snr_db: SNR of the artifact's value against torch's value.
        local_snr_db: SNR of the artifact's value against the torch module's output for the artifact's input.
        peak: largest magnitude of the artifact's value.
        alone_snr_db: SNR of the component's output in torch with only this module's local error; None if not computed.
    """

    path: str
    kind: str
    cumulative_snr_db: float
    local_snr_db: float
    peak: float
    alone_snr_db: float | None = None


@dataclass(frozen=True)
class OpError:
    """One operation of an artifact in Model Explorer.

    Attributes:
        node: id of its node.
        kind, module: the format's name of the operation, and path of the torch module that it computes.
        bytes: stored bytes of the constants that it reads.
        cumulative_snr_db, local_snr_db: see :class:`ModuleError`; None if its value is not a module's output.
        peak: largest magnitude of its value; None if the value is not float, or is not a module's output.
    """

    node: str
    kind: str
    module: str
    bytes: int
    cumulative_snr_db: float | None
    local_snr_db: float | None
    peak: float | None


@dataclass(frozen=True)
class Attribution:
    """Errors of one artifact by torch module.

    Attributes:
        case: the golden case that was compared, the artifact's worst.
        snr_db, least_snr_db: SNR of the artifact's output in that case against the golden one, and the threshold.
        hops: the stages from checkpoint to runtime on that case.
        leaves, matched: number of leaf modules that torch called, and of those found in the artifact.
        modules: every module that was found, in the order in which torch computes them.
        first: the module to blame, the first if there are several; None if no module stands out.
        worst: up to ten modules by local error, worst first.
        advice: changes to the recipe, one line each.
        graph, ops: for a ``.tflite`` or ``.onnx`` file, id of its graph in Model Explorer, and all operations.
    """

    component: str
    target: str
    file: str
    case: str
    snr_db: float
    least_snr_db: float
    hops: tuple[Hop, ...]
    leaves: int
    matched: int
    modules: tuple[ModuleError, ...]
    first: ModuleError | None
    worst: tuple[ModuleError, ...]
    advice: tuple[str, ...]
    graph: str = ""
    ops: tuple[OpError, ...] = ()


def attribute(
    artifact: Path, checkpoint_dir: Path, progress: Callable[[str], None] = lambda _: None, lower_again: bool = False
) -> Attribution:
    """Compare an artifact of an export with torch module by module, in a separate process.

    Args:
        artifact: inside the export's folder, beside its ``manifest.json`` and ``golden``.
        checkpoint_dir: the checkpoint that the export was made from.
        progress: called with a line for each step.
        lower_again: also convert the component to float32, to separate errors of lowering from those of quantization.

    Raises:
        ArtifactError: the artifact is not part of an export, or was made from another checkpoint.
        GoldenError: the golden cases are unreadable or altered.
        RuntimeFault: the artifact does not run.
    """
    target = target_of(artifact)
    target.require()
    manifest = read_manifest(artifact.parent)
    entry = entry_of(manifest, artifact)
    progress(f"{manifest.target} {entry.component}: module by module")
    part = Part(artifact.parent, entry.component, checkpoint_dir)
    found = isolated(blame_part, RuntimeFault, f"{artifact.name} in the {target.name} runtime")(part)
    progress(f"{manifest.target} {entry.component}: hop by hop")
    hops = hops_of(artifact.parent, manifest, entry, found.case, checkpoint_dir, lower_again)
    return dataclasses.replace(found, hops=hops)


def entry_of(manifest: Manifest, artifact: Path) -> ArtifactEntry:
    """Return the manifest's entry for an artifact; raises ArtifactError if it has none."""
    for entry in manifest.artifacts:
        if entry.file == artifact.name:
            return entry
    known = ", ".join(entry.file for entry in manifest.artifacts)
    raise ArtifactError(f"{artifact.parent} lists no artifact {artifact.name}; it has {known}")


def blame_part(part: Part) -> Attribution:
    """Attribute one component's errors in this process, without the hops.

    Raises:
        ArtifactError: the artifact does not record torch modules, or was made from another checkpoint.
        RuntimeFault: the artifact does not run.
    """
    manifest, module, cases = opened(part)
    entry = manifest.entry_for(part.component)
    path, altered = artifact_path(part.out, entry), not is_unchanged(part.out, entry)
    return blame(manifest, entry, path, module, cases, altered)


def blame(
    manifest: Manifest,
    entry: ArtifactEntry,
    path: Path,
    part: Rewritten,
    cases: Sequence[GoldenCase],
    altered: bool = False,
) -> Attribution:
    """Attribute the errors of the artifact at ``path`` in its worst golden case.

    Raises:
        ArtifactError: the artifact does not record torch modules.
        RuntimeFault: the artifact does not run.
    """
    target = TARGETS[manifest.target].open()
    case, snr = _worst_case(target, path, part, cases)
    inputs, least = part.inputs_of(case), manifest.recipe.tolerances[entry.component].snr_db
    walker = Walker(part.module, tuple(torch.from_numpy(np.array(inputs[spec.name])) for spec in part.inputs))
    steps = target.graph(path).steps
    names = sorted({name for found in walker.candidates(steps).values() for name in found})
    values = target.values(path, inputs, names)
    found = Search(walker, steps, values, least).locate()
    if not found.seen.keys() & walker.leaves:
        raise ArtifactError(f"{path.name} does not record its torch modules; export it again")
    errors = {name: _error(name, found, walker) for name in found.seen}
    attributed = Attribution(
        component=entry.component,
        target=manifest.target,
        file=entry.file,
        case=case.name,
        snr_db=snr,
        least_snr_db=least,
        hops=(),
        leaves=len(walker.leaves),
        matched=len(walker.leaves & found.seen.keys()),
        modules=tuple(errors.values()),
        first=None if found.first is None else errors[found.first],
        worst=tuple(errors[name] for name in found.worst),
        advice=(),
    )
    if isinstance(target, ShownByExplorer):
        graph = target.explorer_graph(path)
        attributed = dataclasses.replace(attributed, graph=graph.name, ops=_ops(graph, steps, values, found))
    advice = remedies(manifest, entry, attributed, walker.owners, altered)
    return dataclasses.replace(attributed, advice=advice)


def _worst_case(target: Target, path: Path, part: Rewritten, cases: Sequence[GoldenCase]) -> tuple[GoldenCase, float]:
    runner = target.load(path)
    cases = each_call(part.component, cases)
    figures = [_figure(joined(runner.run(part.inputs_of(case))), part.output_of(case), path) for case in cases]
    number = int(np.argmin(figures))
    return cases[number], figures[number]


def _figure(value: Any, wanted: Any, path: Path) -> float:
    if value.shape != wanted.shape:
        raise RuntimeFault(f"{path.name} gives {list(value.shape)}, not {list(wanted.shape)}; export again")
    return snr_db(value, wanted)


def _ops(graph: ExplorerGraph, steps: Sequence[Step], values: Arrays, found: Located) -> tuple[OpError, ...]:
    """Return one entry per operation; if several modules have the same output, use the innermost."""
    seen = {one.value: one for one in reversed(found.seen.values())}
    return tuple(_op(graph, node, step, values, seen) for node, step in zip(graph.nodes, steps, strict=True))


def _op(graph: ExplorerGraph, node: str, step: Step, values: Arrays, seen: Mapping[str, Seen]) -> OpError:
    known = [graph.values[name] for name in step.inputs if name in graph.values]
    errors = next((seen[name] for name in step.outputs if name in seen), None)
    floats = [name for name in step.outputs if name in values and graph.values[name].dtype.startswith("float")]
    return OpError(
        node,
        step.kind,
        next(iter(step.modules), ""),
        sum(value.stored or 0 for value in known),
        errors.cumulative_snr_db if errors else None,
        errors.local_snr_db if errors else None,
        max((float(np.abs(values[name]).max()) for name in floats), default=None),
    )


def _error(path: str, found: Located, walker: Walker) -> ModuleError:
    seen = found.seen[path]
    kind = walker.kinds[path]
    return ModuleError(path, kind, seen.cumulative_snr_db, seen.local_snr_db, seen.peak, found.alone.get(path))
