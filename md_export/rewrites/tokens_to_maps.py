"""Tokens → maps: linears as 1×1 convolutions, norms over channels, attention at rank 3.

    linear(x: [B, S, C])                →  conv2d(x: [B, C, H, W]), weight [out, in, 1, 1] a view of [out, in]
    layer_norm over C                   →  means over the channels of a map
    scores [B, h, Lq, Lk], rank 4       →  [B·h, Lq, Lk], rank 3
    flatten, transpose, reshape around a stack  →  removed

The function is the same except for the order of float32 sums. Inputs and outputs of the component keep their shapes;
text is a map of height 1. Linears on vectors, as in the time embedding, stay (vector_linear_to_conv2d).
"""

# Principle, for the whole file: LiteRT stores maps as [B, H, W, C]. In this layout a linear on tokens is a 1×1
# convolution, a norm over channels reduces the last axis, and nothing between attentions needs a RESHAPE or TRANSPOSE.
# The GPU engine runs an int8 convolution but no int8 FULLY_CONNECTED of this size ("Failed to initialize kernel").
# Attention has rank 3 with heads in the batch: the converter splits products of rank 4 (unless rank_4_attention
# follows), and the engine then adds masks to them wrongly.

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from md_export.rewrites.tokens_as_channels import ROOTS, Form, use_form
from md_export.spec.sampler import OneStep


class MapLayerNorm(nn.LayerNorm):
    """LayerNorm over the channels of a map; keeps ``weight`` and ``bias``."""

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` → ``[B, C, H, W]``, normalized over C."""
        centred = x - x.mean(dim=1, keepdim=True)
        variance = (centred * centred).mean(dim=1, keepdim=True)
        out = centred * torch.rsqrt(variance + self.eps)
        if self.weight is None:
            return out
        return out * self.weight[None, :, None, None] + self.bias[None, :, None, None]


class Maps(Form):
    """``[B, C, H, W]`` throughout; heads go into the batch: ``[B·heads, H·W, C/heads]``."""

    def enter(self, tokens: Tensor) -> Tensor:
        """``[B, L, C]`` → ``[B, C, 1, L]``; a reshape if channels are last."""
        return tokens[:, None].permute(0, 3, 1, 2)

    def leave(self, channels: Tensor) -> Tensor:
        """``[B, C, 1, L]`` → ``[B, L, C]``."""
        return channels.permute(0, 2, 3, 1)[:, 0]

    def mask(self, mask: Tensor, heads: int) -> Tensor:
        """``[B, 1 or heads, Lq or 1, Lk]`` → ``[B·heads, Lq or 1, Lk]``, or ``[1, …]`` if equal for all heads."""
        if len(mask) == 1:
            return mask[0]
        # Concatenated, not broadcast: the GPU engine does not support BROADCAST_TO.
        return torch.cat([mask] * (heads // mask.shape[1]), dim=1).flatten(0, 1)

    def heads(self, x: Tensor, heads: int) -> Tensor:
        """``[B, C, H, W]`` → ``[B·heads, H·W, C/heads]``."""
        batch, channels, height, width = x.shape
        size = (height * width, heads, channels // heads)
        last = x.permute(0, 2, 3, 1)
        if batch == 1:  # as in every artifact; saves a RESHAPE
            return last.reshape(size).transpose(0, 1)
        return last.reshape(batch, *size).transpose(1, 2).flatten(0, 1)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, weigh: Callable[[Tensor], Tensor], shape: Any) -> Tensor:
        """``[B·heads, Lq, d]`` and ``[B·heads, Lk, d]`` → ``[B, heads·d, H, W]``; ``shape``: shape of the queries."""
        x = torch.matmul(weigh(torch.matmul(q, k.transpose(1, 2))), v)
        batch, _, height, width = shape
        last = x.transpose(0, 1) if batch == 1 else x.reshape(batch, -1, *x.shape[1:]).transpose(1, 2)
        return last.reshape(batch, height, width, -1).permute(0, 3, 1, 2)

    def layer_norm(self, norm: nn.LayerNorm) -> None:
        """Change ``norm`` in place into a :class:`MapLayerNorm`."""
        norm.__class__ = MapLayerNorm


def tokens_to_maps(module: nn.Module, one_step: OneStep) -> int:  # noqa: ARG001 (the table's signature)
    """Rewrite in place; return the number of linears that became convolutions."""
    return use_form(module, Maps())


def count_maps(module: nn.Module) -> int:
    """Count modules in this form; 1 for a component without tokens, such as the lite decoder."""
    roots = [layer for layer in module.modules() if isinstance(layer, ROOTS)]
    return sum(isinstance(getattr(layer, "form", None), Maps) for layer in roots) or int(not roots)
