"""Known faults of runtimes, from public reports or our tests, and the operations of a graph that they affect."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from pydantic import ConfigDict

from md_export.targets.operations import Shape


@dataclass(frozen=True)
class FaultReport:
    """One reported fault of a runtime.

    Attributes:
        id: short name, unique in its file.
        title: what goes wrong, in one sentence.
        effect: the runtime ``refused`` the graph, computed it ``wrong``, was ended by a ``crash``, or was ``slow``.
        confidence: ``reported`` by others, or ``measured`` by md-export's own tests.
        source: address of the report, or place in md-export's manual.
        advice: recommended change.
        backends: backends of the runtime that reports name.
        devices: devices that reports name; others may have the fault, too.
        since: first version that a report names; None if reports name none.
        until: last version that has the fault; None if no report names a version without it.
        helps: rewrites of md-export that make the recommended change.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    id: str
    title: str
    effect: Literal["refused", "wrong", "crash", "slow"]
    confidence: Literal["reported", "measured"]
    source: str
    advice: str
    backends: tuple[str, ...]
    devices: tuple[str, ...] = ()
    since: str | None = None
    until: str | None = None
    helps: tuple[str, ...] = ()

    @property
    def span(self) -> str:
        """The affected versions in words."""
        if self.since and self.until:
            return self.since if self.since == self.until else f"{self.since}–{self.until}"
        return f"{self.since} and later" if self.since else f"{self.until} and earlier" if self.until else "any version"

    @property
    def remedy(self) -> str:
        """The recommended change with the rewrites that make it."""
        return f"{self.advice} (rewrite {' or '.join(self.helps)})" if self.helps else self.advice

    def reaches(self, least: str) -> bool:
        """Whether ``least`` or a later version may have the fault."""
        return self.until is None or numbers(self.until) >= numbers(least)


@dataclass(frozen=True)
class FaultyOp:
    """An operation of the form that a fault is about: kind, torch module or "", first output's name and shape."""

    kind: str
    module: str
    name: str
    shape: Shape

    def __str__(self) -> str:
        shape = "×".join(str(size) for size in self.shape) or "scalar"
        return f"{self.kind} {shape} of {self.module or 'no module'} ({self.name})"


@dataclass(frozen=True)
class FoundFault:
    """A fault and the operations of an artifact that have its form, in order of execution; at least one."""

    fault: FaultReport
    ops: tuple[FaultyOp, ...]

    def __str__(self) -> str:
        more = f" and {len(self.ops) - 1} more" if len(self.ops) > 1 else ""
        where = ", ".join((*self.fault.backends, *self.fault.devices))
        return (
            f"{self.fault.span} ({where}) {self.fault.effect} here: {self.ops[0]}{more}: {self.fault.title}; "
            f"{self.fault.remedy}; {self.fault.source}"
        )


@dataclass(frozen=True)
class KnownFaults:
    """The known faults of a runtime that concern one artifact.

    Attributes:
        runtime: name of the runtime whose versions the faults name.
        safe_from: least version from which no known fault, other than a slow one, concerns the artifact; None if such a
            fault has no known end, or if none was found.
        found: faults that concern the artifact, in the file's order.
        notes: faults of the runtime that no form of a graph causes.
    """

    runtime: str
    safe_from: str | None
    found: tuple[FoundFault, ...]
    notes: tuple[FaultReport, ...]

    def lines(self) -> Iterator[str]:
        """Yield the answer: on which versions the artifact is safe, and what is wrong on the others."""
        if not self.found:
            yield f"no known fault of {self.runtime} concerns it"
        elif all(item.fault.effect == "slow" for item in self.found):
            yield f"known faults of {self.runtime} only make it slow"
        elif self.safe_from:
            yield f"safe on {self.runtime} ≥ {self.safe_from}"
        else:
            yield f"no version of {self.runtime} is known to be safe"
        yield from (f"on {self.runtime} {item}" for item in self.found)

    def blocking(self, least: str) -> FoundFault | None:
        """Return the first fault, other than a slow one, that ``least`` or a later version may have."""
        return next((it for it in self.found if it.fault.effect != "slow" and it.fault.reaches(least)), None)


def numbers(version: str) -> tuple[int, ...]:
    """Return the numbers of a version such as ``2.1.6``, to compare it by; ValueError for anything else."""
    return tuple(int(part) for part in version.split("."))
