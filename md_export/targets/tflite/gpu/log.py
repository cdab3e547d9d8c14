"""Messages that LiteRT's GPU engine writes on standard error while it compiles a graph."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

# The list of refused ops follows a line of its own and ends with how the graph was split.
_HEADING: Final = "Following operations are not supported by GPU delegate:"
_REFUSAL: Final = re.compile(r"^(?P<operator>[A-Z][A-Z0-9_]+): (?P<reason>.+)$")
_SPLIT: Final = re.compile(r"^(?P<gpu>\d+|No) operations will run on the GPU, and (?:the remaining|all) (?P<cpu>\d+) ")
_ADAPTER: Final = re.compile(r"Selected adapter: ([^,]+)")
# absl's fatal and error lines, and TensorFlow Lite's own.
_TROUBLE: Final = re.compile(r"^(?:[EF]\d{4} \S+\s+\d+ \S+\] |ERROR: )(?P<text>.+)$")
_PREAMBLE: Final = re.compile(r"^Failed to create \S+: ")
_INVALID: Final = "Validation error: "
# Of one message; some list all arguments of a kernel.
_LONGEST: Final = 120
# Said after a failure whatever its cause.
_EMPTY: Final = ("Restored original execution plan", "Failed to initialize kernel", "[")


@dataclass(frozen=True)
class Refusal:
    """A kind of op that the engine left to the CPU, and why, in its words."""

    operator: str
    reason: str


@dataclass(frozen=True)
class EngineLog:
    """The engine's account.

    Attributes:
        adapter: device on which it ran.
        refusals: each kind of op and reason once.
        on_cpu: ops left to the CPU, with those that are supported but lie outside the largest part.
        trouble: what it reported where it failed.
    """

    adapter: str
    refusals: tuple[Refusal, ...]
    on_cpu: int
    trouble: tuple[str, ...]

    @property
    def invalid(self) -> tuple[str, ...]:
        """Operations that the device refused, although the engine may report success and answer with zeros then."""
        first = (line.removeprefix(_INVALID) for line in self.trouble if line.startswith(_INVALID))
        # What follows from an earlier refusal begins with a bracket.
        return tuple(line for line in first if not line.startswith("["))


def read_log(text: str) -> EngineLog:
    """Read a worker's log; a graph that is compiled twice tells everything twice."""
    lines = [line.strip() for line in text.splitlines()]
    splits = [match for line in lines if (match := _SPLIT.match(line))]
    adapter = _ADAPTER.search(text)
    return EngineLog(
        adapter=adapter.group(1) if adapter else "no adapter",
        refusals=tuple(dict.fromkeys(_refusals(lines))),
        on_cpu=int(splits[-1]["cpu"]) if splits else 0,
        trouble=tuple(dict.fromkeys(_trouble(lines))),
    )


def _refusals(lines: list[str]) -> list[Refusal]:
    found, listing = [], False
    for line in lines:
        if _HEADING in line:
            listing = True
        elif listing and (match := _REFUSAL.match(line)):
            found.append(Refusal(match["operator"], match["reason"]))
        else:
            listing = False
    return found


def _trouble(lines: list[str]) -> list[str]:
    texts = [_PREAMBLE.sub("", match["text"]) for line in lines if (match := _TROUBLE.match(line))]
    return [_short(text) for text in texts if not text.startswith(_EMPTY) and _HEADING not in text]


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"
