"""Modules are measured wherever workers are, and written down as results come."""

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

# Told how many of how many are measured, and how long the rest takes in words.
Count = Callable[[int, int, str], None]
_MODULE: Final = TypeAdapter(Module)


@dataclass(frozen=True)
class Job(Generic[Request]):
    """One module to measure.

    Attributes:
        weights: elements.
        request: what the measure function gets; it answers with the module's candidates.
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
    """Measure what the journal does not have; all modules in the order of the jobs.

    Raises:
        RuntimeFault: a worker died or failed, or gave no measurement; the journal keeps all that came before.
        MdExportError: what ``measure`` raised.
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
        # A worker may be another machine's: nothing that it answers is believed unseen.
        return _MODULE.validate_json(to_json(plain))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RuntimeFault(f"{job.component} {job.path}: no measurement: {where}: {first['msg']}") from error


class TimeLeft:
    """How long the rest takes, by the mean of what was measured of the same component, else of any."""

    def __init__(self, components: Iterable[str], at_a_time: int) -> None:
        self._left = Counter(components)
        self._at_a_time = at_a_time
        self._spent: dict[str, list[float]] = {}

    def finish(self, component: str, seconds: float) -> None:
        """One module of a component took so much work."""
        self._left[component] -= 1
        self._spent.setdefault(component, []).append(seconds)

    @property
    def seconds(self) -> float | None:
        """None where nothing is known."""
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
        """In words, for a progress line."""
        seconds = self.seconds
        if not self._left.total():
            return "all measured"
        return "time left not known yet" if seconds is None else f"about {spelled(seconds)} left"


def spelled(seconds: float) -> str:
    """A duration as roughly as an estimate deserves: ``40 s``, ``12 min``, ``3 h 20 min``."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
