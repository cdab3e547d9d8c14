"""Parse the messages of LiteRT's GPU engine while it compiles a graph, and find the affected ops, with advice."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from md_export.targets.lint.judge import fits
from md_export.targets.lint.rules import rules_of
from md_export.targets.operations import Op, Shape

# The list of refused ops follows this heading and ends with a line about the split of the graph.
_HEADING: Final = "Following operations are not supported by GPU delegate:"
_REFUSAL: Final = re.compile(r"^(?P<operator>[A-Z][A-Z0-9_]+): (?P<reason>.+)$")
_SPLIT: Final = re.compile(r"^(?P<gpu>\d+|No) operations will run on the GPU, and (?:the remaining|all) (?P<cpu>\d+) ")
_ADAPTER: Final = re.compile(r"Selected adapter: ([^,]+)")
# Fatal and error lines of absl, and error lines of TensorFlow Lite.
_TROUBLE: Final = re.compile(r"^(?:[EF]\d{4} \S+\s+\d+ \S+\] |ERROR: )(?P<text>.+)$")
_PREAMBLE: Final = re.compile(r"^Failed to create \S+: ")
_INVALID: Final = "Validation error: "
# Longest message; some list all arguments of a kernel.
_LONGEST: Final = 120
# Messages after any failure, independent of its cause.
_EMPTY: Final = ("Restored original execution plan", "Failed to initialize kernel", "[")
# Largest rank of a tensor that the GPU engine supports.
LARGEST_RANK: Final = 4
NONE: Final = "no rewrite is known; express it by other ops"
# Ops that a reason applies to, among those of its kind. Reasons that end with a tensor's name need no entry.
_ABOUT: Final[tuple[tuple[str, Callable[[Op], bool]], ...]] = (
    ("Operation is not supported", lambda _: True),
    ("few identical inputs", lambda op: op.reads_twice),
    ("Permutation for transpose is invalid", lambda op: op.rank > LARGEST_RANK),
)


@dataclass(frozen=True)
class Refusal:
    """A kind of op that the engine left to the CPU, and the engine's reason."""

    operator: str
    reason: str


@dataclass(frozen=True)
class EngineLog:
    """The parsed log of the engine.

    Attributes:
        adapter: device that it ran on.
        refusals: each kind of op and reason, once.
        on_cpu: number of ops left to the CPU, including supported ops outside the largest part.
        trouble: error messages of a failure.
    """

    adapter: str
    refusals: tuple[Refusal, ...]
    on_cpu: int
    trouble: tuple[str, ...]

    @property
    def invalid(self) -> tuple[str, ...]:
        """Return operations that the device refused; the engine may then report success and return zeros."""
        first = (line.removeprefix(_INVALID) for line in self.trouble if line.startswith(_INVALID))
        # Consequences of an earlier refusal begin with a bracket.
        return tuple(line for line in first if not line.startswith("["))


def read_log(text: str) -> EngineLog:
    """Parse a worker's log; a graph that is compiled twice has every message twice."""
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


@dataclass(frozen=True)
class OpFinding:
    """An op that keeps a graph off the GPU or that the GPU computes wrongly.

    Attributes:
        operator, module, tensor, shape: kind of the op, torch module that it computes, name and shape of its output.
        reason: the engine's message, or a measurement.
        certain: whether this op is known to be the cause; otherwise the engine named only its kind.
        advice: recommended change.
    """

    operator: str
    module: str
    tensor: str
    shape: Shape
    reason: str
    certain: bool
    advice: str

    def __str__(self) -> str:
        kind = "" if self.certain else "probably "
        shape = "×".join(str(size) for size in self.shape) or "scalar"
        return f"{kind}{self.operator} {shape} of {self.module or 'no module'} ({self.tensor}): {self.reason}"


def finding_of(op: Op, reason: str, certain: bool) -> OpFinding:
    """Return the finding about an op for ``reason``, with advice."""
    return OpFinding(op.kind, op.module, op.name, op.shape, reason, certain, advice_for(op, reason))


def advice_for(op: Op, reason: str) -> str:
    """Return the advice for an op: the first remedy of the rule file that applies."""
    remedies = rules_of("tflite").remedy
    return next((item.advice for item in remedies if item.reason in reason and fits(op, item.when)), NONE)


def refused_ops(refusals: Sequence[Refusal], ops: Sequence[Op]) -> tuple[OpFinding, ...]:
    """Return every op that a refusal applies to, in the order of the graph; each op once, with its first reason."""
    found: dict[str, OpFinding] = {}
    for refusal in refusals:
        kind = [op for op in ops if op.kind == refusal.operator]
        meant = [op for op in kind if _is_named(op, refusal.reason)] or [op for op in kind if _is_about(op, refusal)]
        for op in meant or kind:
            found.setdefault(op.name, finding_of(op, refusal.reason, certain=bool(meant)))
    return tuple(found[op.name] for op in ops if op.name in found)


def _is_named(op: Op, reason: str) -> bool:
    return any(reason.endswith(f" {value.name}") for value in op.values)


def _is_about(op: Op, refusal: Refusal) -> bool:
    return any(words in refusal.reason and applies(op) for words, applies in _ABOUT)
