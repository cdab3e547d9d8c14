"""Storage types of the operations of a .tflite file that both the quantizer and the runtimes support."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from md_export.spec.scheme import QuantScheme, WeightStorage, per_channel, per_tensor

if TYPE_CHECKING:
    from torch import nn

EMBEDDING: Final = "EMBEDDING_LOOKUP"
DEPTHWISE: Final = "DEPTHWISE_CONV_2D"
_FLOAT: Final = "float32"
_DENSE: Final = ("FULLY_CONNECTED", "CONV_2D", "TRANSPOSE_CONV")
_MATRICES: Final = (*_DENSE, DEPTHWISE)
# ai_edge_quantizer does not support 4 bits in other operations.
_NARROW: Final = ("FULLY_CONNECTED", "CONV_2D", EMBEDDING)

# Operations with a converted weight, by (weights, activations); all others stay float32. The Android GPU does not
# support float16 embedding tables, so they stay float32. XNNPACK has no depthwise convolution with dynamic ranges, and
# the fallback kernel is several times slower than float, and wrong with one scale per tensor.
OPERATIONS: Final[Mapping[tuple[str, str], tuple[str, ...]]] = {
    ("float16", "float32"): _MATRICES,
    ("int8", "float32"): (*_MATRICES, EMBEDDING),
    ("int8", "int8_dynamic"): (*_DENSE, EMBEDDING),
    ("int8", "int8_static"): (*_MATRICES, EMBEDDING),
    ("int4", "int8_dynamic"): _NARROW,
    ("int4", "int8_static"): _NARROW,
}


def stored_as(operation: str, own: QuantScheme) -> str:
    """Return the stored dtype of an operation's weight; ``own``: its module's scheme.

    An operation that does not support 4 bits is stored in 8 bits; one that does not support 8 bits stays float32.
    """
    tried = (own.weights, "int8") if own.weights == "int4" else (own.weights,)
    return next((one for one in tried if operation in (_operations(one, own.activations) or ())), _FLOAT)


def is_promised(operation: str, own: QuantScheme) -> bool:
    """Whether the weight of such an operation must have the dtype of its module's scheme."""
    found = _operations(own.weights, own.activations)
    return found is None or operation in found


def _operations(weights: str, activations: str) -> tuple[str, ...] | None:
    """Return the operations with a converted weight; float16 weights are decoded before use, for any activations."""
    return OPERATIONS.get((weights, _FLOAT if weights == "float16" else activations))


def weight_storage(path: str, layer: nn.Module, scheme: QuantScheme) -> WeightStorage | None:
    """Return how the quantizer stores a layer's weight under the layer's ``scheme`` without rules; None: in float.

    The table of positions is folded into an added constant, so it is not a weight.
    """
    operation = _operation(layer)
    if operation is None or path.endswith("position_embedding"):
        return None
    weights, shape = stored_as(operation, scheme), tuple(layer.get_parameter("weight").shape)
    if weights.startswith("float"):
        return None
    bits = int(weights.removeprefix("int"))
    groups = per_channel(shape) if is_per_channel(operation, scheme) else per_tensor(shape)
    return WeightStorage(bits, groups, levels=2 ** (bits - 1) - 1)


def is_per_channel(operation: str, own: QuantScheme) -> bool:
    """Whether a weight has a scale per output channel. Embedding tables always do: with one, the GPU reads zeros."""
    return own.granularity == "channel" or operation == EMBEDDING


def _operation(layer: nn.Module) -> str | None:
    from torch import nn  # imported late, because reading a saved file does not need torch

    if isinstance(layer, nn.Embedding):
        return EMBEDDING
    if isinstance(layer, nn.Conv2d):
        return DEPTHWISE if layer.groups == layer.in_channels > 1 else "CONV_2D"
    return "FULLY_CONNECTED" if isinstance(layer, nn.Linear) else None
