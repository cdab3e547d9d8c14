"""One artifact of an export followed module by module; runs inside a worker process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from md_export.artifact import ArtifactEntry, artifact_path, is_unchanged
from md_export.checkpoint import open_checkpoint
from md_export.errors import ArtifactError, RuntimeFault
from md_export.manifest import Manifest
from md_export.parity.cases import each_call
from md_export.parity.golden_case import GoldenCase
from md_export.parity.metrics import snr_db
from md_export.parity.modules.attribute import Attribution, ModuleError
from md_export.parity.modules.locate import Located, Search
from md_export.parity.modules.remedies import remedies
from md_export.parity.modules.walk import Walker
from md_export.parity.opening import check_checkpoint, open_export
from md_export.parity.rewritten import Rewritten, rewritten
from md_export.targets import TARGETS
from md_export.targets.contract import TargetModule
from md_export.tensors import joined


def blame_in_worker(out: Path, component: str, checkpoint_dir: Path) -> Attribution:
    """Attribute one component's errors; the hops are left to the caller.

    Raises:
        ArtifactError: the artifact tells nothing of torch modules, or was made from another checkpoint.
        RuntimeFault: it does not run.
    """
    manifest, part, cases = opened(out, component, checkpoint_dir)
    entry = manifest.entry_for(component)
    return blame(manifest, entry, artifact_path(out, entry), part, cases, altered=not is_unchanged(out, entry))


def opened(out: Path, component: str, checkpoint_dir: Path) -> tuple[Manifest, Rewritten, tuple[GoldenCase, ...]]:
    """An export's manifest, one component's torch module as it was lowered, and the golden cases.

    Raises:
        ArtifactError: the export was made from another checkpoint.
        GoldenError: its golden cases are unreadable or altered.
    """
    export, checkpoint = open_export(out), open_checkpoint(checkpoint_dir)
    check_checkpoint(export.manifest, checkpoint)
    return export.manifest, rewritten(checkpoint, component, export.manifest.recipe), export.golden.cases


def rewritten_in_worker(out: Path, component: str, checkpoint_dir: Path, cases: Sequence[str]) -> float:
    """SNR of the torch module as it was lowered against the golden outputs, the worst of the named cases."""
    _, part, known = opened(out, component, checkpoint_dir)
    return min(part.snr_db(case) for case in known if case.name in cases)


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
        ArtifactError: the artifact tells nothing of torch modules.
        RuntimeFault: it does not run.
    """
    target = TARGETS[manifest.target].open()
    case, snr = _worst_case(target, path, part, cases)
    inputs, least = part.inputs_of(case), manifest.recipe.tolerances[entry.component].snr_db
    walker = Walker(part.module, tuple(torch.from_numpy(np.array(inputs[spec.name])) for spec in part.inputs))
    steps = target.steps(path)
    names = sorted({name for found in walker.candidates(steps).values() for name in found})
    found = Search(walker, steps, target.values(path, inputs, names), least).locate()
    if not found.seen.keys() & walker.leaves:
        raise ArtifactError(f"{path.name} tells nothing of the torch modules it was made from; export it again")
    errors = {name: _error(name, found, walker) for name in found.seen}
    first = errors[found.first] if found.first is not None else None
    worst = tuple(errors[name] for name in found.worst)
    return Attribution(
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
        first=first,
        worst=worst,
        advice=remedies(manifest, entry, tuple(errors.values()), first, worst, walker.owners, altered),
    )


def _worst_case(
    target: TargetModule, path: Path, part: Rewritten, cases: Sequence[GoldenCase]
) -> tuple[GoldenCase, float]:
    runner = target.load(path)
    cases = each_call(part.component, cases)
    figures = [_figure(joined(runner.run(part.inputs_of(case))), part.output_of(case), path) for case in cases]
    number = int(np.argmin(figures))
    return cases[number], figures[number]


def _figure(value: Any, wanted: Any, path: Path) -> float:
    if value.shape != wanted.shape:
        raise RuntimeFault(f"{path.name} gives {list(value.shape)} where {list(wanted.shape)} is wanted; export again")
    return snr_db(value, wanted)


def _error(path: str, found: Located, walker: Walker) -> ModuleError:
    seen = found.seen[path]
    kind = walker.kinds[path]
    return ModuleError(path, kind, seen.cumulative_snr_db, seen.local_snr_db, seen.peak, found.alone.get(path))
