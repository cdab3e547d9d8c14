"""From what the engine refused to the ops of the graph, their torch modules and what would help."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from md_export.targets.tflite.gpu.advice import advice_for
from md_export.targets.tflite.gpu.graph import LARGEST_RANK, GraphOp
from md_export.targets.tflite.gpu.log import Refusal


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
    shape: tuple[int, ...]
    reason: str
    certain: bool
    advice: str

    def __str__(self) -> str:
        kind = "" if self.certain else "probably "
        shape = "×".join(str(size) for size in self.shape) or "scalar"
        return f"{kind}{self.operator} {shape} of {self.module or 'no module'} ({self.tensor}): {self.reason}"


def finding_of(op: GraphOp, reason: str, certain: bool) -> OpFinding:
    """Say ``reason`` of an op, with the advice for it."""
    return OpFinding(op.operator, op.module, op.outputs[0], op.shape, reason, certain, advice_for(op, reason))


def _repeats_an_input(op: GraphOp) -> bool:
    return len(set(op.inputs)) < len(op.inputs)


# Which ops of its kind a reason is about. Reasons that end with a tensor's name need no entry.
_ABOUT: Final[tuple[tuple[str, Callable[[GraphOp], bool]], ...]] = (
    ("Operation is not supported", lambda _: True),
    ("few identical inputs", _repeats_an_input),
    ("Permutation for transpose is invalid", lambda op: op.rank > LARGEST_RANK),
)


def refused_ops(refusals: Sequence[Refusal], ops: Sequence[GraphOp]) -> tuple[OpFinding, ...]:
    """Every op that a refusal is about, in the order of the graph; an op with several reasons once."""
    found: dict[str, OpFinding] = {}
    for refusal in refusals:
        kind = [op for op in ops if op.operator == refusal.operator]
        meant = [op for op in kind if _is_named(op, refusal.reason)] or [op for op in kind if _is_about(op, refusal)]
        for op in meant or kind:
            found.setdefault(op.outputs[0], finding_of(op, refusal.reason, certain=bool(meant)))
    return tuple(found[op.outputs[0]] for op in ops if op.outputs[0] in found)


def _is_named(op: GraphOp, reason: str) -> bool:
    return any(reason.endswith(f" {name}") for name in (*op.inputs, *op.outputs))


def _is_about(op: GraphOp, refusal: Refusal) -> bool:
    return any(words in refusal.reason and applies(op) for words, applies in _ABOUT)
