"""Token linears → 1×1 convolutions, everything between them on ``[B, C, 1, S]``.

    linear(x: [B, S, C])      →  conv2d(x: [B, C, 1, S]), weight [out, in, 1, 1] a view of [out, in]
    layer_norm over C         →  channel layer norm (channel_layer_norm.py)
    [B, S, C] → heads by reshape and transpose  →  [B, C, 1, S] → [B, h, d, S] by reshape alone
    flatten, transpose, reshape around a stack  →  reshape [B, C, H, W] ↔ [B, C, 1, H·W]

The function is the same but for the order of float32 sums. Inputs and outputs of the component keep their
shapes: the text costs one transpose. Linears on vectors, as in the time embedding, stay.
"""

from __future__ import annotations

from typing import Final

from torch import nn

from md_export.models.layers import Attention, GluProjection
from md_export.models.text_encoder import TextEncoder
from md_export.models.unet import TransformerStack
from md_export.models.vae import SpatialAttention
from md_export.rewrites.channel_first import (
    ChannelFirstAttention,
    ChannelFirstClipAttention,
    ChannelFirstSpatialAttention,
    ChannelFirstStack,
    ChannelFirstTextEncoder,
)
from md_export.rewrites.channel_layer_norm import to_channel_layer_norm
from md_export.rewrites.token_forms import ChannelGlu, TokenForm
from md_export.spec.sampler import OneStep

_FORM: Final = TokenForm(
    {
        TransformerStack: ChannelFirstStack,
        Attention: ChannelFirstAttention,
        GluProjection: ChannelGlu,
        SpatialAttention: ChannelFirstSpatialAttention,
        TextEncoder: ChannelFirstTextEncoder,
    },
    ChannelFirstClipAttention,
    to_channel_layer_norm,
)


def linear_to_conv2d(module: nn.Module, one_step: OneStep) -> int:  # noqa: ARG001 (the table's signature)
    """Rewrite in place; returns the number of linears that became convolutions."""
    return _FORM.apply(module)


def count_conv2d(module: nn.Module) -> int:
    """1×1 convolutions; a component without token linears, such as the lite decoder, has all it needs."""
    return sum(isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) for layer in module.modules())
