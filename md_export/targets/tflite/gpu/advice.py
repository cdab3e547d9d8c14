"""What would bring an op to the GPU: one line for each kind of trouble that was seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from md_export.targets.tflite.gpu.graph import LARGEST_RANK, GraphOp


@dataclass(frozen=True)
class _Advice:
    """``operators``: empty for any; ``words``: part of the reason; ``when``: a property of the op."""

    text: str
    operators: tuple[str, ...] = ()
    words: str = ""
    when: Callable[[GraphOp], bool] = lambda _: True


NONE: Final = "no rewrite is known; express it by other ops"
# The first line that fits is given.
_TABLE: Final = (
    _Advice(
        "a GroupNorm: rewrite staged_group_norm; else add or multiply with the small tensor without expanding it",
        ("BROADCAST_TO",),
    ),
    _Advice(
        "a GroupNorm: rewrite staged_group_norm; else leave out the batch dimension or merge two",
        when=lambda op: op.rank > LARGEST_RANK,
    ),
    _Advice("read the tensor once", words="identical inputs"),
    _Advice("multiply at rank 3 where both factors are one tensor", words="already a consumer"),
    _Advice(
        "attention at rank 3, [heads, L, L] with a mask of [1, L, L]: rewrite tokens_to_maps",
        ("ADD", "SOFTMAX", "BATCH_MATMUL"),
        when=lambda op: op.rank == 4 and op.shape[-2:] == (op.shape[-1],) * 2,
    ),
    _Advice(
        "a 1×1 convolution: rewrite tokens_to_maps for linears on tokens, vector_linear_to_conv2d for others",
        ("FULLY_CONNECTED",),
    ),
    _Advice("fewer input channels at a time: rewrite split_wide_conv2d", ("CONV_2D",), when=lambda op: op.is_wide),
    _Advice("an embedding table in float32 or int8: keep_float", ("EMBEDDING_LOOKUP", "GATHER", "DEQUANTIZE")),
)


def advice_for(op: GraphOp, reason: str) -> str:
    """What would help this op."""
    for line in _TABLE:
        if (not line.operators or op.operator in line.operators) and line.words in reason and line.when(op):
            return line.text
    return NONE
