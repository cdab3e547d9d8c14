"""Map the engine's refusals to ops of the graph, their torch modules, and advice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from md_export.targets.lint.conditions import fits
from md_export.targets.lint.op import Op, Shape
from md_export.targets.lint.rules import rules_of
from md_export.targets.tflite.gpu.log import Refusal

# Largest rank of a tensor that the GPU engine supports.
LARGEST_RANK: Final = 4
NONE: Final = "no rewrite is known; express it by other ops"


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


# Ops that a reason applies to, among those of its kind. Reasons that end with a tensor's name need no entry.
_ABOUT: Final[tuple[tuple[str, Callable[[Op], bool]], ...]] = (
    ("Operation is not supported", lambda _: True),
    ("few identical inputs", lambda op: op.reads_twice),
    ("Permutation for transpose is invalid", lambda op: op.rank > LARGEST_RANK),
)


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
