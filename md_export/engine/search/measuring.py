"""Measurement of modules on the available workers; each result is written to the journal as soon as it arrives."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Generic

from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json

from md_export.engine.search.choice import Candidate, Module
from md_export.engine.search.journal import Journal
from md_export.engine.search.spread import Request, Workers, spread
from md_export.errors import RuntimeFault

# Progress callback: number of measured modules, number of all modules, and the remaining time in words.
Count = Callable[[int, int, str], None]
_MODULE: Final = TypeAdapter(Module)


@dataclass(frozen=True)
class Job(Generic[Request]):
    """One module to measure.

    Attributes:
        weights: number of elements.
        request: argument of the measuring function, which returns the module's candidates.
    """

    component: str
    path: str
    weights: int
    request: Request


def measure_all(
    jobs: Sequence[Job[Request]],
    measure: Callable[[Request], Sequence[Candidate]],
    found: Workers,
    journal: Journal,
    count: Count = lambda *_: None,
) -> tuple[Module, ...]:
    """Measure the modules that are not in the journal, and return all modules in the order of the jobs.

    Raises:
        RuntimeFault: a worker died or failed, or returned an invalid result; the journal keeps all earlier results.
        MdExportError: the error that ``measure`` raised.
    """
    missing = [job for job in jobs if (job.component, job.path) not in journal.found]
    left = TimeLeft((job.component for job in missing), found.count)
    done, total = len(jobs) - len(missing), len(jobs)
    count(done, total, left.text)
    try:
        for answer in spread(measure, [job.request for job in missing], found):
            job = missing[answer.index]
            journal.append(_module(job, answer.value))
            left.finish(job.component, answer.seconds)
            done += 1
            count(done, total, left.text)
    except RuntimeFault as error:
        raise RuntimeFault(f"{error} ({done} of {total} modules are measured and kept in {journal.path})") from error
    return tuple(journal.found[job.component, job.path] for job in jobs)


def _module(job: Job[Request], answer: Sequence[Candidate]) -> Module:
    plain = {"component": job.component, "path": job.path, "weights": job.weights, "candidates": answer}
    try:
        # A worker can be on another machine, so its answer is validated.
        return _MODULE.validate_json(to_json(plain))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RuntimeFault(f"{job.component} {job.path}: no measurement: {where}: {first['msg']}") from error


class TimeLeft:
    """Estimate of the remaining time from the mean time per module of the same component, or else of all components."""

    def __init__(self, components: Iterable[str], at_a_time: int) -> None:
        self._left = Counter(components)
        self._at_a_time = at_a_time
        self._spent: dict[str, list[float]] = {}

    def finish(self, component: str, seconds: float) -> None:
        """Record the time of one measured module of a component, in seconds."""
        self._left[component] -= 1
        self._spent.setdefault(component, []).append(seconds)

    @property
    def seconds(self) -> float | None:
        """Estimated remaining time in seconds; None before the first measurement."""
        every = [seconds for spent in self._spent.values() for seconds in spent]
        if not every:
            return None
        means = {component: math.fsum(spent) / len(spent) for component, spent in self._spent.items()}
        overall = math.fsum(every) / len(every)
        work = math.fsum(count * means.get(component, overall) for component, count in self._left.items())
        busy = min(self._at_a_time, max(1, self._left.total()))
        return work / busy

    @property
    def text(self) -> str:
        """Remaining time in words, for a progress line."""
        seconds = self.seconds
        if not self._left.total():
            return "all measured"
        return "time left not known yet" if seconds is None else f"about {spelled(seconds)} left"


def spelled(seconds: float) -> str:
    """Format a duration with the precision of an estimate: ``40 s``, ``12 min``, ``3 h 20 min``."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
