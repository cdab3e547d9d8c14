"""What Apple publishes of the Neural Engine for Core AI, as rules on one operation of a program.

The pages are those of apple/coreai-models at one commit. What they do not speak of is no rule here. Where they
contradict each other, the verdict is ``unknown``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from md_export.targets.advice import Confidence, Rule
from md_export.targets.coreai.facts import OpFacts
from md_export.targets.coreai.predicates import (
    MOVES,
    has,
    has_other_factors,
    heads_together,
    holds_infinity,
    is_in_blocks,
    last_axes,
    moves_last_axis,
    passes_float16,
    rank_over,
    softmax_axis,
    strides,
    vanishes,
)

VERSION: Final = 1
_TREE: Final = "https://github.com/apple/coreai-models/blob/86b363dca67cf276c1a5c96eea5e4b57e3a0643c"
_ENGINE: Final = f"{_TREE}/skills/skills/model-authoring/references/neural_engine_rules.md"
_ISSUES: Final = f"{_TREE}/skills/skills/model-authoring/references/common_issues.md"
_GUIDANCE: Final = f"{_TREE}/skills/skills/working-with-coreai/references/guidance.md"
_FLOAT16: Final = "https://standards.ieee.org/ieee/754/6210/"

# Of the patterns in _ENGINE; a convolution's padding is an operation of its own in the file.
_AUTHORED: Final = frozenset(
    {
        "conv2d",
        "pad",
        "batch_matmul",
        "broadcasting_batch_matmul",
        "softmax",
        "broadcasting_add",
        "broadcasting_sub",
        "broadcasting_mul",
        "sigmoid",
        "exp",
        "split",
        "concat",
        "reshape",
        "transpose",
    }
)
_MATMULS: Final = frozenset({"batch_matmul", "broadcasting_batch_matmul"})
_NORMS: Final = frozenset({"layer_norm", "group_norm", "instance_norm", "rms_norm"})
_PIECES: Final = frozenset({"reduce_mean", "rsqrt"})
LAYOUT: Final = MOVES | {"pad", "concat", "split"}
_WIDE_INTEGERS: Final = frozenset({"int32", "uint32", "int64", "uint64"})
_MOST_RANK: Final = 5
_ROW: Final = 32
# The largest rate that is a prime factor which _ENGINE advises.
_MOST_DILATION: Final = 3
_MOST_PALETTE_STRIDE: Final = 2
MOST_BYTES: Final = 2_000_000_000


@dataclass(frozen=True)
class EngineRule:
    """A rule and the operations that it fits."""

    rule: Rule
    fits: Callable[[OpFacts], bool]


def _likely(name: str, title: str, source: str, kinds: frozenset[str]) -> EngineRule:
    rule = Rule(name, title, "likely", "guidance", source, "nothing to do")
    return EngineRule(rule, lambda op: op.kind in kinds)


def _unlikely(name: str, title: str, advice: str, fits: Callable[[OpFacts], bool], *helps: str) -> EngineRule:
    return EngineRule(Rule(name, title, "unlikely", "documented", _ENGINE, advice, helps), fits)


def _unknown(
    name: str,
    title: str,
    source: str,
    advice: str,
    fits: Callable[[OpFacts], bool],
    confidence: Confidence = "guidance",
) -> EngineRule:
    return EngineRule(Rule(name, title, "unknown", confidence, source, advice), fits)


def _costly(
    name: str, title: str, advice: str, fits: Callable[[OpFacts], bool], *helps: str, source: str = _ENGINE
) -> EngineRule:
    return EngineRule(Rule(name, title, "costly", "guidance", source, advice, helps), fits)


RULES: Final = (
    _likely("authored", "a kind of operation in the patterns that Apple gives for it", _ENGINE, _AUTHORED),
    _likely("norm", "norms as one operation are what the compiler maps best", _ENGINE, _NORMS),
    _likely(
        "small-weights",
        "int8 or int4 with scales per channel, and palettes, are what is advised for iOS",
        _GUIDANCE,
        frozenset({"blockwise_shift_scale", "lut_to_dense"}),
    ),
    _likely("int8-values", "int8 is among the types that it computes", _ENGINE, frozenset({"quantize", "dequantize"})),
    _unlikely(
        "float32",
        "float32 falls back to the GPU or the CPU",
        'activations = "float16"; what such an export leaves in float32 can be folded, as the time embedding, or is '
        "asked for by the model, as the softmax of transformers' text encoder",
        lambda op: op.kind != "cast" and not op.decodes and has(op, "float32"),
        "fold_timestep",
    ),
    _unlikely(
        "float32-cast",
        "float32 falls back to the GPU or the CPU: a hand-over",
        "one each way is the price of a float32 surface; inside a graph, find out why",
        lambda op: op.kind == "cast" and has(op, "float32"),
    ),
    _unlikely(
        "integers",
        "beside float16 only int8 and int16 are computed",
        "keep index arithmetic out of the graph, or at its start, where one hand-over costs little",
        lambda op: not op.decodes and has(op, *_WIDE_INTEGERS),
    ),
    _unlikely(
        "rank",
        "tensors have at most five dimensions",
        "reshape so that unused dimensions go away",
        lambda op: rank_over(op, _MOST_RANK),
    ),
    _unlikely(
        "dynamic",
        "shapes are static",
        "export once for each shape",
        lambda op: any(None in edge.shape for edge in op.edges),
    ),
    EngineRule(
        Rule(
            "gather-rank",
            "a look-up that gives three dimensions is rejected",
            "unlikely",
            "documented",
            _ISSUES,
            "a look-up of tokens at the start of a graph costs one hand-over; elsewhere give tables of shape "
            "[rows, 1, width]",
        ),
        lambda op: op.kind == "gather_nd" and len(op.writes[0].shape) == 3,
    ),
    _unknown(
        "infinity",
        "-inf in a mask is not handled as IEEE says, in softmax above all",
        _ENGINE,
        "mask with a finite number such as -1e4",
        holds_infinity,
    ),
    _unknown(
        "beyond-float16",
        "a number that float16 stores as infinity: it ends at 65504",
        _FLOAT16,
        "take a smaller number; masks need none below -1e4",
        passes_float16,
        "documented",
    ),
    _unknown(
        "vanishes",
        "a number that float16 stores as zero: 3e-8 and less",
        _FLOAT16,
        "a larger eps, or the norm as one operation",
        vanishes,
        "documented",
    ),
    _unknown(
        "silu",
        "Apple's list of issues has it computed in float32, its own layers for iOS use it",
        _ISSUES,
        "x * sigmoid(x) is the way out that the list names",
        lambda op: op.kind == "silu",
    ),
    _costly(
        "last-axis-1",
        "a last axis of length 1 is padded to 64 bytes: 32 times the memory in float16",
        "put a long axis last; or fold what does not change",
        lambda op: any(size < 2 for size in last_axes(op)),
        "fold_timestep",
    ),
    _costly(
        "last-axis-32",
        "a last axis shorter than 32 float16 elements is padded to 64 bytes",
        "put the longest axis last; the width of a small picture cannot be helped",
        lambda op: any(2 <= size < _ROW for size in last_axes(op)),
    ),
    _costly(
        "last-axis-moves",
        "a reshape or transpose of the last axis rewrites the whole tensor",
        "keep tokens in [B, C, 1, S] from end to end",
        moves_last_axis,
        "linear_to_conv2d",
    ),
    _costly(
        "linear",
        "a linear is taken apart into slower operations; a 1×1 convolution is not",
        "1×1 convolutions over [B, C, 1, S], or fold what does not change",
        lambda op: op.kind in _MATMULS and op.reads[1] is None,
        "linear_to_conv2d",
        "fold_timestep",
    ),
    _costly(
        "norm-in-pieces",
        "a norm written as means, squares and roots is mapped worse than one operation",
        "leave the norms as they are: staged_group_norm is for float32",
        lambda op: op.kind in _PIECES,
    ),
    _costly(
        "heads-together",
        "attention over several heads at once is not fused; each head by itself is, and stays in the cache",
        "a product for each head; a GPU wants the opposite",
        heads_together,
        "split_attention_heads",
    ),
    _costly(
        "softmax-axis",
        "a softmax over height or width keeps the compiler from splitting the work along it",
        "put the keys on the channel axis, at the price of more operations",
        lambda op: softmax_axis(op) in (-1, -2),
        "split_attention_heads",
    ),
    _costly(
        "stride",
        "strides with other prime factors than 2 and 3 map badly",
        "use strides made of 2 and 3, equal on both axes",
        lambda op: any(map(has_other_factors, strides(op))),
    ),
    _costly(
        "palette-stride",
        "with a palette, strides above 2 are hardly supported",
        "keep that weight in float16 or int8",
        lambda op: op.weight == "lut_to_dense" and any(stride > _MOST_PALETTE_STRIDE for stride in strides(op)),
    ),
    _costly(
        "dilation",
        "large dilation rates are expensive",
        "chain convolutions of dilation 2 and 3",
        lambda op: op.kind == "conv2d" and any(rate > _MOST_DILATION for rate in op.parameter(3)),
    ),
    _costly(
        "blocks",
        "a scale per block is advised for macOS; for iOS, one per channel",
        'granularity = "channel", or a palette, where the Neural Engine is the aim',
        is_in_blocks,
        source=_GUIDANCE,
    ),
)
SIZE: Final = Rule(
    "asset-size",
    "models for iOS are to stay under 2 GB",
    "costly",
    "guidance",
    _GUIDANCE,
    "use int8 or a palette",
)
