"""Steps side by side: as many as there may be, within the memory that they may hold together."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from md_export.engine.plan import Cost, Step
from md_export.errors import MdExportError

_TICK_S: Final = 0.5


@dataclass(frozen=True)
class Limits:
    """How many steps run at a time, and how much memory they may hold: together, or each where they run ``apart``."""

    jobs: int
    most_bytes: int
    apart: bool = False


@dataclass(frozen=True)
class Failure:
    """A step that has no result.

    Attributes:
        error: what it raised; None where it was not started.
        follows: it was not started because of another failure.
    """

    step: Step
    reason: str
    error: Exception | None = None
    follows: bool = False


class Watcher(Protocol):
    """Who is told of everything, in the order in which it happens, in the caller's own thread."""

    def started(self, step: Step) -> None:
        """A process of its own was started."""

    def finished(self, step: Step, cost: Cost) -> None:
        """What it made is in the cache."""

    def failed(self, failure: Failure) -> None:
        """It has no result, and neither will those that need it."""

    def tick(self) -> None:
        """Some time went by."""


class Listener(Watcher, Protocol):
    """Who is told what is going to happen, and then what happens."""

    def line(self, text: str) -> None:
        """Something that should be known."""

    def planned(self, steps: tuple[Step, ...], cached: tuple[Step, ...], limits: Limits) -> None:
        """The steps that will run, and those whose results are in the cache."""

    def placed(self, folder: Path) -> None:
        """An export is in its folder."""


class Teller:
    """A listener that tells a line for each step; ``note`` gets what should stay to be seen, such as the line that says
    what is built and what is taken from the cache."""

    def __init__(self, tell: Callable[[str], None], note: Callable[[str], None] | None = None) -> None:
        self._tell, self.line = tell, note or tell

    def planned(self, steps: tuple[Step, ...], cached: tuple[Step, ...], limits: Limits) -> None:
        """Say what is built and what is taken from the cache."""
        del limits
        self.line(f"to build: {_names(steps)}; from the cache: {_names(cached)}")

    def started(self, step: Step) -> None:
        """Say what is made."""
        self._tell(step.label)

    def placed(self, folder: Path) -> None:
        """Say nothing."""

    def finished(self, step: Step, cost: Cost) -> None:
        """Say nothing."""

    def failed(self, failure: Failure) -> None:
        """Say nothing."""

    def tick(self) -> None:
        """Say nothing."""


def _names(steps: Iterable[Step]) -> str:
    """What some steps of one recipe make."""
    return ", ".join(step.label.rpartition(": ")[2] for step in steps) or "nothing"


# Begins a step that may hold so many bytes.
Begin = Callable[[Step, int], Future[Cost]]


def run_steps(steps: Iterable[Step], begin: Begin, limits: Limits, watcher: Watcher) -> tuple[Failure, ...]:
    """Run all steps that can be run; what fails does not keep the others from ending.

    Args:
        steps: in an order in which each comes after those of them that it needs; needs that are none of them are met.
        begin: as :meth:`Executor.submit` of what carries out a step.

    Returns:
        steps without a result: failed, too large for ``limits``, or in need of such a one.
    """
    return _Run(list(steps), begin, limits, watcher).run()


class _Run:
    def __init__(self, steps: list[Step], begin: Begin, limits: Limits, watcher: Watcher) -> None:
        self._waiting, self._begin, self._limits, self._watcher = steps, begin, limits, watcher
        # Each with the memory that it was given.
        self._running: dict[Future[Cost], tuple[Step, int]] = {}
        self._failures: dict[str, Failure] = {}

    def run(self) -> tuple[Failure, ...]:
        while self._waiting or self._running:
            self._start_some()
            done, _ = wait(self._running, timeout=_TICK_S, return_when=FIRST_COMPLETED)
            for future in done:
                self._end(future)
            self._watcher.tick()
        return tuple(self._failures.values())

    def _start_some(self) -> None:
        for step in list(self._waiting):
            if failure := self._obstacle(step):
                self._waiting.remove(step)
                self._fail(failure)
            elif self._may_start(step):
                self._waiting.remove(step)
                given = self._share(step)
                self._watcher.started(step)
                self._running[self._begin(step, given)] = (step, given)

    def _obstacle(self, step: Step) -> Failure | None:
        """Why it will never run; None where it will."""
        lacking = [self._failures[key].step.label for key in step.needs if key in self._failures]
        if lacking:
            return Failure(step, f"not started, since it needs {lacking[0]}", follows=True)
        needed = step.cost.peak_bytes
        if needed > self._limits.most_bytes:
            most = self._limits.most_bytes / 1e9
            text = f"not started: it needs about {needed / 1e9:.1f} GB of memory and may have {most:.1f} GB"
            return Failure(step, f"{text}; --max-memory {_rounded_up(needed)} would do")
        return None

    def _may_start(self, step: Step) -> bool:
        others = {one.key for one in self._waiting} | {one.key for one, _ in self._running.values()}
        ready = others.isdisjoint(step.needs)
        return ready and len(self._running) < self._limits.jobs and step.cost.peak_bytes <= self._free()

    def _free(self) -> int:
        held = 0 if self._limits.apart else sum(given for _, given in self._running.values())
        return self._limits.most_bytes - held

    def _share(self, step: Step) -> int:
        """What it needs, or an equal share of what is left where that is more: together never above the limit."""
        places = 1 if self._limits.apart else self._limits.jobs - len(self._running)
        return max(step.cost.peak_bytes, self._free() // places)

    def _end(self, future: Future[Cost]) -> None:
        step, _ = self._running.pop(future)
        try:
            self._watcher.finished(step, future.result())
        except (MdExportError, OSError) as error:
            self._fail(Failure(step, str(error), error))

    def _fail(self, failure: Failure) -> None:
        self._failures[failure.step.key] = failure
        self._watcher.failed(failure)


def _rounded_up(size: int) -> str:
    """In tenths of a gigabyte: ``8.4G``."""
    return f"{-(-size // 100_000_000) / 10:g}G"


def submitter(executor: Executor, perform: Callable[[Step, int], Cost]) -> Begin:
    """Steps go to any executor of :mod:`concurrent.futures`, a cluster's for one."""
    return lambda step, given: executor.submit(perform, step, given)
