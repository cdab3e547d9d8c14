"""Execution of one step, from its request to its cache entry.

Arguments and results are plain data, so any executor can call it.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from md_export.engine.cache import Cache, Entry
from md_export.engine.costs import Measured
from md_export.engine.plan import (
    ArtifactRequest,
    ArtifactResult,
    Cost,
    ExportRequest,
    ExportResult,
    Inputs,
    Request,
    Result,
    Step,
)
from md_export.errors import ConversionError, ParityError
from md_export.system.isolation import Ended, Limits, attempt, result_of
from md_export.targets import TARGETS

# What every step imports, and what builds a text encoder.
MODEL_MODULES: Final = ("md_export.engine.steps", "transformers.models.clip.modeling_clip")


@dataclass(frozen=True)
class Task:
    """A step with the paths that it reads and writes.

    Attributes:
        cache: root of the cache.
        work: folder of this build in the cache, for entries that are being written.
        inputs: paths of the inputs on this machine.
        most_bytes: memory limit of its processes in bytes; None: no limit.
        rejected: folder for an export that fails verification; None: it is not kept.
    """

    step: Step
    cache: Path
    work: Path
    inputs: Inputs
    most_bytes: int | None = None
    rejected: Path | None = None


@dataclass(frozen=True)
class Job:
    """Input of a step in its worker process.

    Attributes:
        folder: folder for the files that the step makes.
        files: folders of the files of the needed steps, by key.
        results: results of the needed steps, by key.
    """

    request: Request
    inputs: Inputs
    folder: Path
    files: dict[str, Path]
    results: dict[str, Result]


def perform(task: Task, cache: Cache | None = None) -> Cost:
    """Carry out a step in a separate process, store its result in the cache and return its measured cost.

    Args:
        cache: cache object for ``task.cache`` if it is not a plain folder, such as one backed by a store.

    Raises:
        MdExportError: the error that the step raised.
        ConversionError: the process died, or exceeded its memory limit.
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
    ended = attempt(carry_out, job, Limits(most_bytes=task.most_bytes), modules_of(step.request))
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


def modules_of(request: Request) -> tuple[str, ...]:
    """Return the modules that steps of a kind import, each of which takes seconds to import."""
    match request:
        case ArtifactRequest():
            return (*MODEL_MODULES, "torch.export._trace", *TARGETS[request.recipe.target].preload)
        case ExportRequest():
            return MODEL_MODULES[:1]
    return MODEL_MODULES


def carry_out(job: Job) -> Result:
    """Carry out one step; runs in its worker process, the only one that imports the step's libraries."""
    from md_export.engine.steps import carry_out

    return carry_out(job)


def files_before(needed: Iterable[Entry]) -> dict[str, str]:
    """Return the SHA-256 of each file of an export that comes from earlier steps, by path in the export."""
    return {name: file.sha256 for entry in needed for name, file in entry.files.items()}


def _peak(ended: Ended[Result]) -> int:
    """Return the peak memory in bytes: the larger of the peak sampled from outside and the worker's own measurement."""
    own = ended.result.entry.measured.peak_resident_bytes if isinstance(ended.result, ArtifactResult) else 0
    return max(ended.peak_bytes, own)


def _keep_rejected(folder: Path, kept: Path | None) -> None:
    if kept is not None:
        shutil.rmtree(kept, ignore_errors=True)
        shutil.move(folder, kept)
