"""Tokens → maps: linears as 1×1 convolutions, norms over channels, attention at rank 3.

    linear(x: [B, S, C])                →  conv2d(x: [B, C, H, W]), weight [out, in, 1, 1] a view of [out, in]
    layer_norm over C                   →  means over the channels of a map
    scores [B, h, Lq, Lk], rank 4       →  [B·h, Lq, Lk], rank 3
    flatten, transpose, reshape around a stack  →  nothing

The function is the same but for the order of float32 sums. Inputs and outputs of the component keep their shapes.
Linears on vectors, as in the time embedding, stay (vector_linear_to_conv2d).
"""

from __future__ import annotations

from typing import Final

from torch import nn

from md_export.models.layers import Attention, GluProjection
from md_export.models.text_encoder import TextEncoder
from md_export.models.unet import TransformerStack
from md_export.models.vae import SpatialAttention
from md_export.rewrites.token_forms import ROOTS, ChannelGlu, TokenForm
from md_export.rewrites.token_maps import (
    MapAttention,
    MapClipAttention,
    MapSpatialAttention,
    MapStack,
    MapTextEncoder,
    to_map_layer_norm,
)
from md_export.spec.sampler import OneStep

_FORM: Final = TokenForm(
    {
        TransformerStack: MapStack,
        Attention: MapAttention,
        GluProjection: ChannelGlu,
        SpatialAttention: MapSpatialAttention,
        TextEncoder: MapTextEncoder,
    },
    MapClipAttention,
    to_map_layer_norm,
)


def tokens_to_maps(module: nn.Module, one_step: OneStep) -> int:  # noqa: ARG001 (the table's signature)
    """Rewrite in place; returns the number of linears that became convolutions."""
    return _FORM.apply(module)


def count_maps(module: nn.Module) -> int:
    """Modules that have the form already; a component without tokens, such as the lite decoder, has all it needs."""
    forms = tuple(_FORM.classes[root] for root in ROOTS)
    tokens = any(isinstance(layer, ROOTS) for layer in module.modules())
    return sum(isinstance(layer, forms) for layer in module.modules()) or int(not tokens)
