"""From what the engine refused to the ops of the graph, their torch modules and what would help."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from md_export.targets.lint.conditions import fits
from md_export.targets.lint.op import Op, Shape
from md_export.targets.lint.rules import rules_of
from md_export.targets.tflite.gpu.log import Refusal

# Of a tensor that the GPU engine takes.
LARGEST_RANK: Final = 4
NONE: Final = "no rewrite is known; express it by other ops"


@dataclass(frozen=True)
class OpFinding:
    """One op that keeps a graph off the GPU or makes it wrong there.

    Attributes:
        operator, module, tensor, shape: the op, the torch module that it computes, its output.
        reason: the engine's words, or what was measured.
        certain: whether it is known to be this op; else it is one of its kind, of which the engine named none.
        advice: what would help.
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
    """Say ``reason`` of an op, with the advice for it."""
    return OpFinding(op.kind, op.module, op.name, op.shape, reason, certain, advice_for(op, reason))


def advice_for(op: Op, reason: str) -> str:
    """What would help this op: the first remedy of the rule file that fits."""
    remedies = rules_of("tflite").remedy
    return next((item.advice for item in remedies if item.reason in reason and fits(op, item.when)), NONE)


# Which ops of its kind a reason is about. Reasons that end with a tensor's name need no entry.
_ABOUT: Final[tuple[tuple[str, Callable[[Op], bool]], ...]] = (
    ("Operation is not supported", lambda _: True),
    ("few identical inputs", lambda op: op.reads_twice),
    ("Permutation for transpose is invalid", lambda op: op.rank > LARGEST_RANK),
)


def refused_ops(refusals: Sequence[Refusal], ops: Sequence[Op]) -> tuple[OpFinding, ...]:
    """Every op that a refusal is about, in the order of the graph; an op with several reasons once."""
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
