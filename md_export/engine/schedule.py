"""Schedule of a build: which step may start now, within a number of jobs and a memory limit.

:mod:`md_export.engine.running` runs the steps of a schedule; ``benchmarks/cluster.py`` simulates them.
"""

from __future__ import annotations

from bisect import insort
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from md_export.engine.plan import Step


@dataclass(frozen=True)
class Limits:
    """Limits on concurrent steps.

    Attributes:
        jobs: number of steps that run at the same time.
        most_bytes: memory limit in bytes, for all running steps together, or for each step if ``apart``.
        apart: whether the steps run on separate workers that do not share the limit.
    """

    jobs: int
    most_bytes: int
    apart: bool = False


@dataclass(frozen=True)
class Failure:
    """A step without a result.

    Attributes:
        reason: message for the user.
        error: exception that the step raised; None if it was not started.
        follows: whether it was not started because another step failed.
    """

    step: Step
    reason: str
    error: Exception | None = None
    follows: bool = False


def longest_chains(steps: Sequence[Step]) -> dict[str, float]:
    """Return the predicted seconds of the longest chain of steps that begins with each step, by key."""
    after, found = dict[str, float](), dict[str, float]()
    for step in reversed(steps):
        found[step.key] = step.cost.seconds + after.get(step.key, 0.0)
        for need in step.needs:
            after[need] = max(after.get(need, 0.0), found[step.key])
    return found


class Schedule:
    """The waiting and the running steps of a build.

    On one machine, steps start in the order of the plan, so that exports are finished one after another. On separate
    workers, the step before the longest chain starts first, so that no worker is left alone with a long chain in the
    end. A call does not take longer if more steps wait for others: a plan may have ten thousand steps.

    Attributes:
        failures: by key, the steps without a result so far: failed, too large for ``limits``, or dependent on one.
    """

    def __init__(self, steps: Iterable[Step], limits: Limits) -> None:
        """Take steps whose needs are earlier in ``steps``; needs outside ``steps`` count as met."""
        self._steps, self._limits = list(steps), limits
        if limits.apart:
            chains = longest_chains(self._steps)
            # A step stays behind its needs: their chains are longer or, without predicted times, as long.
            self._steps.sort(key=lambda step: chains[step.key], reverse=True)
        self._places = {step.key: place for place, step in enumerate(self._steps)}
        self._lacking = [{need for need in step.needs if need in self._places} for step in self._steps]
        self._users = defaultdict[str, list[int]](list)
        for place, lacking in enumerate(self._lacking):
            for need in lacking:
                self._users[need].append(place)
        # Memory limit in bytes of each running step, by key.
        self._given: dict[str, int] = {}
        self.failures: dict[str, Failure] = {}
        self._fail_after(0)
        # Positions of the steps that may start as soon as there is room, in ascending order.
        self._ready = [
            place
            for place, step in enumerate(self._steps)
            if not self._lacking[place] and step.key not in self.failures
        ]

    def start(self) -> tuple[Step, int] | None:
        """Start the first step that may start now; return it and its memory limit in bytes."""
        if len(self._given) >= self._limits.jobs:
            return None
        for index, place in enumerate(self._ready):
            step = self._steps[place]
            if step.cost.peak_bytes <= self._free():
                del self._ready[index]
                given = self._given[step.key] = self._share(step)
                return step, given
        return None

    def end(self, step: Step) -> None:
        """Note that a running step has its result."""
        del self._given[step.key]
        for place in self._users[step.key]:
            self._lacking[place].discard(step.key)
            if not self._lacking[place]:
                insort(self._ready, place)

    def fail(self, failure: Failure) -> None:
        """Note that a running step has no result; the steps that need it fail, too."""
        del self._given[failure.step.key]
        self.failures[failure.step.key] = failure
        self._fail_after(self._places[failure.step.key])

    def _fail_after(self, place: int) -> None:
        for step in self._steps[place:]:
            if step.key not in self.failures and (failure := self._obstacle(step)):
                self.failures[step.key] = failure

    def _obstacle(self, step: Step) -> Failure | None:
        """Return the reason why a step can never run, or None if it can."""
        lacking = [self.failures[key].step.label for key in step.needs if key in self.failures]
        if lacking:
            return Failure(step, f"not started, because it needs {lacking[0]}", follows=True)
        needed, most = step.cost.peak_bytes, self._limits.most_bytes
        if needed <= most:
            return None
        text = f"not started: it needs about {needed / 1e9:.1f} GB of memory, and the limit is {most / 1e9:.1f} GB"
        return Failure(step, f"{text}; give --max-memory {_rounded_up(needed)}")

    def _free(self) -> int:
        return self._limits.most_bytes - (0 if self._limits.apart else sum(self._given.values()))

    def _share(self, step: Step) -> int:
        """Return a step's memory limit: its predicted need, or an equal share of the free memory if that is larger.

        The limits of all running steps together never exceed ``most_bytes``.
        """
        places = 1 if self._limits.apart else self._limits.jobs - len(self._given)
        return max(step.cost.peak_bytes, self._free() // places)


def _rounded_up(size: int) -> str:
    """Format a size in gigabytes, rounded up to tenths: ``8.4G``."""
    return f"{-(-size // 100_000_000) / 10:g}G"
