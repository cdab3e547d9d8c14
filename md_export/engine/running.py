"""Run steps: all steps of a schedule, and one step in a separate process.

:func:`perform` carries out one step, from its request to its cache entry. Arguments and results are plain data, so any
executor can call it.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from md_export.engine.cache import Cache, Entry
from md_export.engine.costs import Measured
from md_export.engine.plan import (
    MODEL_MODULES,
    ArtifactRequest,
    ArtifactResult,
    Cost,
    ExportResult,
    Inputs,
    Request,
    Result,
    Step,
)
from md_export.engine.schedule import Failure, Limits, Schedule
from md_export.errors import ConversionError, MdExportError, ParityError
from md_export.system.isolation import Ended, attempt, result_of
from md_export.system.isolation import Limits as ProcessLimits
from md_export.targets import TARGETS

_TICK_S: Final = 0.5


class Watcher:
    """Callbacks for the events of a run, called in order in the caller's thread; by default they do nothing."""

    def started(self, step: Step) -> None:
        """Called when a step starts."""

    def finished(self, step: Step, cost: Cost) -> None:
        """Called when a step's result is in the cache; ``cost`` is measured."""

    def failed(self, failure: Failure) -> None:
        """Called when a step has no result; the steps that need it are not started and also fail."""

    def doing(self, key: str, text: str) -> None:
        """Called with the key of a running step and what it says that it is doing."""

    def tick(self) -> None:
        """Called repeatedly during a run, about every :data:`_TICK_S` seconds or more often."""


class Listener(Watcher):
    """Callbacks for a build: the plan, the events of its run, and the placed exports."""

    def line(self, text: str) -> None:
        """Called with a message for the user."""

    def planned(self, steps: tuple[Step, ...], cached: tuple[Step, ...], limits: Limits) -> None:
        """Called with the steps that will run and the steps with a result in the cache."""

    def placed(self, folder: Path) -> None:
        """Called when an export has been placed in its folder."""


class Teller(Listener):
    """Listener that passes one line per step to ``tell``.

    Lines that should remain visible, such as the summary of what is built and what is cached, go to ``note``.
    """

    def __init__(self, tell: Callable[[str], None], note: Callable[[str], None] | None = None) -> None:
        self._tell, self._note = tell, note or tell

    def line(self, text: str) -> None:
        """Report the message."""
        self._note(text)

    def planned(self, steps: tuple[Step, ...], cached: tuple[Step, ...], limits: Limits) -> None:
        """Report what is built and what comes from the cache."""
        del limits
        self.line(f"to build: {_names(steps)}; from the cache: {_names(cached)}")

    def started(self, step: Step) -> None:
        """Report the label of the step."""
        self._tell(step.label)


def _names(steps: Iterable[Step]) -> str:
    """Return a comma-separated list of the labels of steps, without the recipe's name."""
    return ", ".join(step.label.rpartition(": ")[2] for step in steps) or "nothing"


# Starts a step with a memory limit in bytes.
Begin = Callable[[Step, int], Future[Cost]]


def run_steps(steps: Iterable[Step], begin: Begin, limits: Limits, watcher: Watcher) -> tuple[Failure, ...]:
    """Run all steps that can run; a failing step does not stop the others.

    Args:
        steps: ordered so that each step comes after those it needs; needs outside ``steps`` count as met.
        begin: starts a step with a memory limit and returns its future.

    Returns:
        The steps without a result: failed, too large for ``limits``, or dependent on such a step.
    """
    schedule, running, told = Schedule(steps, limits), dict[Future[Cost], Step](), 0
    while True:
        for failure in list(schedule.failures.values())[told:]:
            watcher.failed(failure)
        told = len(schedule.failures)
        while (found := schedule.start()) is not None:
            watcher.started(found[0])
            running[begin(*found)] = found[0]
        if not running:
            return tuple(schedule.failures.values())
        done, _ = wait(running, timeout=_TICK_S, return_when=FIRST_COMPLETED)
        for future in done:
            step = running.pop(future)
            try:
                watcher.finished(step, future.result())
                schedule.end(step)
            except (MdExportError, OSError) as error:
                schedule.fail(Failure(step, str(error), error))
        watcher.tick()


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

    def tell(self, text: str) -> None:
        """Say what is being done, in the log and for :func:`said_in`."""
        print(text, flush=True)
        _said(self.folder).write_text(text, encoding="utf-8")


def said_in(folder: Path) -> str:
    """Return what the step that works in ``folder`` said last; empty if nothing."""
    with suppress(OSError, UnicodeDecodeError):
        return _said(folder).read_text(encoding="utf-8")
    return ""


def _said(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.said")


def perform(
    step: Step, cache: Cache, work: Path, inputs: Inputs, most_bytes: int | None = None, rejected: Path | None = None
) -> Cost:
    """Carry out a step in a separate process, store its result in the cache and return its measured cost.

    Args:
        work: folder of this build in the cache, for entries that are being written.
        inputs: paths of the inputs on this machine.
        most_bytes: memory limit of its processes in bytes; None: no limit.
        rejected: folder for an export that fails verification; None: it is not kept.

    Raises:
        MdExportError: the error that the step raised.
        ConversionError: the process died, or exceeded its memory limit.
        ParityError: an export does not compute what the checkpoint computes.
        OutputError: the cache cannot be written.
    """
    folder = work / step.key
    folder.mkdir()
    needed = {key: cache.require(key) for key in step.needs}
    files = {key: cache.files(key) for key in needed}
    results = {key: entry.result for key, entry in needed.items() if entry.result is not None}
    started = time.perf_counter()
    job = Job(step.request, inputs, folder, files, results)
    ended = attempt(carry_out, job, ProcessLimits(most_bytes=most_bytes), modules_of(step.request))
    cost = Cost(_peak(ended), round(time.perf_counter() - started, 2))
    if ended.over_memory or not ended.death:
        Measured(cache.root / "measured").add(step.cost_key, cost)
    result = result_of(ended, ConversionError, step.label)
    if isinstance(result, ExportResult):
        if not result.verdict.passed:
            if rejected is not None:
                shutil.rmtree(rejected, ignore_errors=True)
                shutil.move(folder, rejected)
            raise ParityError("; ".join((*result.hops, *result.verdict.failures)))
        result = replace(result, others=files_before(needed.values()))
    cache.put(step.key, step.kind, step.label, folder, result)
    return cost


def modules_of(request: Request) -> tuple[str, ...]:
    """Return the modules that steps of a kind import, each of which takes seconds to import."""
    match request:
        case ArtifactRequest():
            return (*MODEL_MODULES, "torch.export._trace", *TARGETS[request.recipe.target].preload)
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
