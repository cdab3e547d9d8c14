"""A norm's gamma and beta → into the linears or 1×1 convolutions that read it, if no other layer does.

    W·(gamma·z + beta) + b  →  (W·diag(gamma))·z + (W·beta + b)

Saves one multiplication and one addition of a whole activation per norm. Norms before an activation or a 3×3
convolution stay: silu is not linear, and the convolution pads with 0 instead of beta.
"""

# Principle: constants belong in the weights; elementwise ops cost memory bandwidth. A linear without a bias gets one if
# beta is not zero; runtimes add it as part of the product.

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from md_export.errors import RewriteError
from md_export.models.layers import SepConvBlock
from md_export.models.unet import TransformerBlock, TransformerStack
from md_export.models.vae import SpatialAttention
from md_export.rewrites.fold_timestep import TimelessSepConvBlock
from md_export.rewrites.linear_to_conv2d import ChannelLayerNorm
from md_export.spec.sampler import OneStep

# A norm and all layers that read it.
Reading = tuple[Any, list[Any]]


@torch.no_grad()
def fold_norm_affine(module: nn.Module, one_step: OneStep) -> int:  # noqa: ARG001 (the table's signature)
    """Rewrite in place; return the number of norms changed.

    After fold_timestep this includes the norms of separable convolutions, which had the time embedding after them.

    Raises:
        RewriteError: an earlier rewrite moved a norm's gamma and beta elsewhere.
    """
    fired = 0
    for norm, readers in readings(module):
        if isinstance(norm, ChannelLayerNorm) and norm.scale is not None:
            raise RewriteError("fold_norm_affine must come before linear_to_conv2d; exchange them in the recipe")
        if norm.weight is not None:
            for reader in readers:
                _fold(norm.weight, norm.bias, reader)
            norm.weight = norm.bias = None
            fired += 1
    return fired


def count_plain_norms(module: nn.Module) -> int:
    """Count norms without gamma and beta that only linears read; 1 for a component without such norms."""
    found = readings(module)
    return sum(norm.weight is None for norm, _ in found) or int(not found)


def readings(module: nn.Module) -> list[Reading]:
    """Return every norm that only linears or 1×1 convolutions read, with these layers."""
    return [reading for layer in module.modules() for reading in _of(layer)]


def _of(module: nn.Module) -> list[Reading]:
    layer = cast(Any, module)
    if isinstance(module, TransformerStack):
        return [(layer.norm, [layer.proj_in])]
    if isinstance(module, TransformerBlock):
        cross = [(layer.norm2, [layer.attn2.to_q]), (layer.norm3, [layer.ff.net[0].proj])]
        return cross if layer.attn1 is None else [(layer.norm1, _projections(layer.attn1)), *cross]
    if isinstance(module, SpatialAttention):
        return [(layer.group_norm, [layer.to_q, layer.to_k, layer.to_v])]
    if isinstance(module, SepConvBlock):
        # With scale_shift, the time embedding is applied between norm and convolution.
        plain = isinstance(module, TimelessSepConvBlock) or layer.time != "scale_shift"
        return [(layer.norm, [layer.conv_pw1])] if plain else []
    if hasattr(module, "layer_norm1") and hasattr(module, "self_attn"):  # transformers' CLIPEncoderLayer
        attention = layer.self_attn
        first = (layer.layer_norm1, [attention.q_proj, attention.k_proj, attention.v_proj])
        return [first, (layer.layer_norm2, [layer.mlp.fc1])]
    return []


def _projections(attention: Any) -> list[Any]:
    """Return all layers that read the input of a self-attention."""
    keys_values = [attention.to_kv] if attention.shares_kv else [attention.to_k, attention.to_v]
    return [attention.to_q, *keys_values]


def _fold(gamma: Tensor, beta: Tensor, reader: nn.Linear | nn.Conv2d) -> None:
    # New tensors, because the checkpoint's may be mapped read-only from its file.
    weight = reader.weight
    matrix = weight.reshape(weight.shape[0], -1)
    if bool(beta.any()):
        shift = matrix @ beta
        reader.bias = nn.Parameter(shift if reader.bias is None else reader.bias + shift, requires_grad=False)
    reader.weight = nn.Parameter((matrix * gamma).reshape(weight.shape), requires_grad=False)
