"""One step from its request to its entry in the cache. Data in and out: any executor may call it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from md_export.engine.cache import Cache, Entry
from md_export.engine.costs import Measured
from md_export.engine.plan import ArtifactResult, Cost, ExportResult, Inputs, Request, Result, Step
from md_export.errors import ConversionError, ParityError
from md_export.system.isolation import Ended, Limits, attempt, result_of
from md_export.targets import TARGETS


@dataclass(frozen=True)
class Task:
    """A step, and where it finds and leaves things.

    Attributes:
        cache: root of the cache.
        work: folder of this build in the cache, for entries in the making.
        most_bytes: memory that its processes may hold; None: any amount.
        rejected: folder for an export that falls short; None: it is not kept.
    """

    step: Step
    cache: Path
    work: Path
    inputs: Inputs
    most_bytes: int | None = None
    rejected: Path | None = None


@dataclass(frozen=True)
class Job:
    """A step inside its worker process.

    Attributes:
        folder: for the files that it makes.
        files, results: of the steps that it needs, by their keys.
    """

    request: Request
    inputs: Inputs
    folder: Path
    files: dict[str, Path]
    results: dict[str, Result]


def perform(task: Task, cache: Cache | None = None) -> Cost:
    """Carry a step out in a process of its own and keep what it made; answers with what it took.

    ``cache``: the one at ``task.cache``, where it is more than a folder.

    Raises:
        MdExportError: what the step raised.
        ConversionError: the process died, or held more memory than it may.
        ParityError: an export does not compute what the checkpoint computes.
        OutputError: the cache cannot be written.
    """
    cache, step = cache or Cache(task.cache), task.step
    folder = task.work / step.key
    folder.mkdir()
    needed = {key: cache.require(key) for key in step.needs}
    files = {key: cache.files(key) for key in needed}
    results = {key: entry.result for key, entry in needed.items() if entry.result is not None}
    started = time.perf_counter()
    job = Job(step.request, task.inputs, folder, files, results)
    target = TARGETS[step.request.recipe.target]
    ended = attempt(
        carry_out, job, Limits(most_bytes=task.most_bytes), preload=("md_export.engine.steps", *target.requires)
    )
    cost = Cost(_peak(ended), round(time.perf_counter() - started, 2))
    if ended.over_memory or not ended.death:
        Measured(cache.root / "measured").add(step.cost_key, cost)
    result = result_of(ended, ConversionError, step.label)
    if isinstance(result, ExportResult):
        if not result.verdict.passed:
            _keep_rejected(folder, task.rejected)
            raise ParityError("; ".join((*result.hops, *result.verdict.failures)))
        result = replace(result, others=files_before(needed.values()))
    cache.put(step.key, step.kind, step.label, folder, result)
    return cost


def carry_out(job: Job) -> Result:
    """Carry out one step; runs inside its worker process, which alone imports what the step needs."""
    from md_export.engine.steps import carry_out

    return carry_out(job)


def files_before(needed: Iterable[Entry]) -> dict[str, str]:
    """SHA-256 of each file that an export has from the steps before it."""
    return {name: file.sha256 for entry in needed for name, file in entry.files.items()}


def _peak(ended: Ended[Result]) -> int:
    """The peak that was seen from outside, now and then, or the one that the worker measured of itself."""
    own = ended.result.entry.measured.peak_resident_bytes if isinstance(ended.result, ArtifactResult) else 0
    return max(ended.peak_bytes, own)


def _keep_rejected(folder: Path, kept: Path | None) -> None:
    if kept is not None:
        shutil.rmtree(kept, ignore_errors=True)
        shutil.move(folder, kept)
