"""Tokens → maps: linears as 1×1 convolutions, norms over channels, attention at rank 3.

    linear(x: [B, S, C])                →  conv2d(x: [B, C, H, W]), weight [out, in, 1, 1] a view of [out, in]
    layer_norm over C                   →  means over the channels of a map
    scores [B, h, Lq, Lk], rank 4       →  [B·h, Lq, Lk], rank 3
    flatten, transpose, reshape around a stack  →  nothing

The function is the same but for the order of float32 sums. Inputs and outputs of the component keep their shapes.
Linears on vectors, as in the time embedding, stay (vector_linear_to_conv2d).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from torch import nn

from md_export.artifact import OneStep
from md_export.components.layers import Attention, GluProjection
from md_export.components.text_encoder import TextEncoder
from md_export.components.unet import TransformerStack
from md_export.components.vae import SpatialAttention
from md_export.rewrites.conv1x1 import as_conv2d
from md_export.rewrites.token_maps import (
    MapAttention,
    MapClipAttention,
    MapGlu,
    MapLayerNorm,
    MapSpatialAttention,
    MapStack,
    MapTextEncoder,
)

# Where tokens are; TextEncoder is what surrounds transformers' own layers.
_ROOTS: Final = (TransformerStack, SpatialAttention, TextEncoder)
_SUBSTITUTES: Final[Mapping[type[nn.Module], type[nn.Module]]] = {
    TransformerStack: MapStack,
    Attention: MapAttention,
    GluProjection: MapGlu,
    SpatialAttention: MapSpatialAttention,
    TextEncoder: MapTextEncoder,
    nn.LayerNorm: MapLayerNorm,
}


def tokens_to_maps(module: nn.Module, one_step: OneStep) -> int:  # noqa: ARG001 (the table's signature)
    """Rewrite in place; returns the number of linears that became convolutions."""
    roots = [layer for layer in module.modules() if type(layer) in _ROOTS]
    return sum(_rewrite(root) for root in roots)


def count_maps(module: nn.Module) -> int:
    """Modules that have the form already; a component without tokens, such as the lite decoder, has all it needs."""
    forms = tuple(_SUBSTITUTES.values())
    tokens = any(isinstance(layer, _ROOTS) for layer in module.modules())
    return sum(isinstance(layer, forms) for layer in module.modules()) or int(not tokens)


def _rewrite(parent: nn.Module) -> int:
    """Substitute ``parent`` and all below it; returns the number of linears among its descendants."""
    parent.__class__ = _SUBSTITUTES.get(type(parent), type(parent))
    fired = 0
    for name, child in list(parent.named_children()):
        substitute = _substitute(name, child)
        setattr(parent, name, substitute)
        fired += int(isinstance(child, nn.Linear)) + _rewrite(substitute)
    return fired


def _substitute(name: str, child: nn.Module) -> nn.Module:
    if isinstance(child, nn.Linear):
        return as_conv2d(child)
    if name == "self_attn":  # transformers' CLIPAttention
        return MapClipAttention(child)
    return child
