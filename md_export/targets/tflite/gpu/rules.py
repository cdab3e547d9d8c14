"""What LiteRT's GPU engine is known to take, to refuse and to compute wrongly, as rules on one op of a file.

They were found on the engine itself and are held against it by tests; ``verify --gpu`` asks the engine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from md_export.targets.advice import Rule
from md_export.targets.tflite.gpu.graph import LARGEST_RANK, GraphOp

VERSION: Final = 1
_MANUAL: Final = "docs/android.md"
# Kinds of op in graphs that ran there whole.
_TAKEN: Final = frozenset(
    {
        "ADD",
        "BATCH_MATMUL",
        "CONCATENATION",
        "CONV_2D",
        "COS",
        "DEPTHWISE_CONV_2D",
        "DEQUANTIZE",
        "EMBEDDING_LOOKUP",
        "FULLY_CONNECTED",
        "LOGISTIC",
        "MEAN",
        "MUL",
        "PAD",
        "RESHAPE",
        "RSQRT",
        "SIN",
        "SLICE",
        "SOFTMAX",
        "SUB",
        "TANH",
        "TRANSPOSE",
        "TRANSPOSE_CONV",
    }
)


@dataclass(frozen=True)
class EngineRule:
    """A rule and the ops that it fits: ``fits`` gets the op and the type in which its weight is stored, or ""."""

    rule: Rule
    fits: Callable[[GraphOp, str], bool]


def _is_masked_attention(op: GraphOp) -> bool:
    """Logits and a mask at rank 4, one row per column."""
    square = len(op.shape) == LARGEST_RANK and op.shape[-1] == op.shape[-2] > 1 and op.shape[1] > 1
    return (
        op.operator == "ADD" and square and any(shape[-2:] == op.shape[-2:] and shape[1] == 1 for shape in _ranked(op))
    )


def _ranked(op: GraphOp) -> list[tuple[int, ...]]:
    return [shape for shape in op.shapes if len(shape) == LARGEST_RANK]


RULES: Final = (
    EngineRule(
        Rule(
            "broadcast-to",
            "BROADCAST_TO is refused",
            "unlikely",
            "measured",
            _MANUAL,
            "add or multiply with the small tensor without expanding it",
            ("staged_group_norm",),
        ),
        lambda op, _: op.operator == "BROADCAST_TO",
    ),
    EngineRule(
        Rule(
            "rank-over-4",
            "an op that touches a tensor of rank 5 or more is refused",
            "unlikely",
            "measured",
            _MANUAL,
            "leave out the batch dimension or merge two",
            ("staged_group_norm",),
        ),
        lambda op, _: op.rank > LARGEST_RANK,
    ),
    EngineRule(
        Rule(
            "same-tensor-twice",
            "a tensor that an op reads twice is refused by most ops, and aborts the process in a matrix product",
            "unlikely",
            "measured",
            _MANUAL,
            "read it once; multiply at rank 3",
        ),
        lambda op, _: len(set(op.inputs)) < len(op.inputs) and op.operator != "MUL",
    ),
    EngineRule(
        Rule(
            "masked-attention-rank-4",
            "attention at rank 4 with a mask is taken and computed wrongly",
            "unlikely",
            "measured",
            _MANUAL,
            "attention at rank 3, [heads, L, L] with a mask of [1, L, L]",
            ("tokens_to_maps",),
        ),
        lambda op, _: _is_masked_attention(op),
    ),
    EngineRule(
        Rule(
            "int8-fully-connected",
            "a FULLY_CONNECTED with an int8 or int4 weight fails to compile",
            "unlikely",
            "measured",
            _MANUAL,
            "a 1×1 convolution",
            ("tokens_to_maps", "vector_linear_to_conv2d"),
        ),
        lambda op, dtype: op.operator == "FULLY_CONNECTED" and dtype in ("int8", "int4"),
    ),
    EngineRule(
        Rule(
            "float16-embedding",
            "an embedding table in float16 is left to the CPU",
            "unlikely",
            "measured",
            _MANUAL,
            "keep the table in float32 or int8: keep_float in the recipe",
        ),
        lambda op, dtype: op.operator == "EMBEDDING_LOOKUP" and dtype == "float16",
    ),
    EngineRule(
        Rule(
            "wide-convolution",
            "a convolution with more than 8192 input values for an output is taken, and on large maps it answers zeros",
            "unlikely",
            "measured",
            _MANUAL,
            "fewer input channels at a time, the results added",
            ("split_wide_conv2d",),
        ),
        lambda op, _: op.is_wide,
    ),
    EngineRule(
        Rule(
            "taken",
            "the engine takes this kind of op",
            "likely",
            "measured",
            _MANUAL,
            "nothing; verify --gpu asks the engine",
        ),
        lambda op, _: op.operator in _TAKEN,
    ),
)
