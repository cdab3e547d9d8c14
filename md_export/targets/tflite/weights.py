"""Which operations a .tflite file stores in which type, as the quantizer makes them and the runtimes compute them."""

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
# ai_edge_quantizer has no 4 bits for the others.
_NARROW: Final = ("FULLY_CONNECTED", "CONV_2D", EMBEDDING)

# Operations whose weight is changed for (weights, activations); all others stay float32. The Android GPU runs no
# float16 embedding table, so float16 leaves it in float32. XNNPACK has no depthwise convolution with dynamic ranges,
# and the kernel that stands in is several times slower than float and wrong with one scale per tensor.
OPERATIONS: Final[Mapping[tuple[str, str], tuple[str, ...]]] = {
    ("float16", "float32"): _MATRICES,
    ("int8", "float32"): (*_MATRICES, EMBEDDING),
    ("int8", "int8_dynamic"): (*_DENSE, EMBEDDING),
    ("int8", "int8_static"): (*_MATRICES, EMBEDDING),
    ("int4", "int8_dynamic"): _NARROW,
    ("int4", "int8_static"): _NARROW,
}


def stored_as(operation: str, own: QuantScheme) -> str:
    """Type in which the weight of an operation is stored, ``own`` being its module's scheme.

    What has no 4 bits is stored in 8; what has no 8 stays float32.
    """
    tried = (own.weights, "int8") if own.weights == "int4" else (own.weights,)
    return next((one for one in tried if operation in (_operations(one, own.activations) or ())), _FLOAT)


def is_promised(operation: str, own: QuantScheme) -> bool:
    """Whether the weight of such an operation must have the type that its module's scheme names."""
    found = _operations(own.weights, own.activations)
    return found is None or operation in found


def _operations(weights: str, activations: str) -> tuple[str, ...] | None:
    """Weights in float16 are float32 before they are used, whatever the others do."""
    return OPERATIONS.get((weights, _FLOAT if weights == "float16" else activations))


def weight_storage(path: str, layer: nn.Module, scheme: QuantScheme) -> WeightStorage | None:
    """How the quantizer stores a layer's weight; ``scheme`` is the module's own, without rules. None: in float.

    The table of positions is folded to a constant that is added, and no weight.
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
    """Whether it has a scale per output channel. A row of a table always has: of one for all, the GPU reads zeros."""
    return own.granularity == "channel" or operation == EMBEDDING


def _operation(layer: nn.Module) -> str | None:
    from torch import nn  # here, since whoever reads a saved file needs no torch

    if isinstance(layer, nn.Embedding):
        return EMBEDDING
    if isinstance(layer, nn.Conv2d):
        return DEPTHWISE if layer.groups == layer.in_channels > 1 else "CONV_2D"
    return "FULLY_CONNECTED" if isinstance(layer, nn.Linear) else None
