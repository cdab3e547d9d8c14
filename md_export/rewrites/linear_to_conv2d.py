"""Token linears → 1×1 convolutions, everything between them on ``[B, C, 1, S]``.

    linear(x: [B, S, C])      →  conv2d(x: [B, C, 1, S]), weight [out, in, 1, 1] a view of [out, in]
    layer_norm(x: [B, S, C])  →  (z·rsqrt(mean_C(z²) + eps) + beta/gamma)·gamma,  z = x - mean_C(x),  x: [B, C, 1, S]
    [B, S, C] → heads by reshape and transpose  →  [B, C, 1, S] → [B, h, d, S] by reshape alone
    flatten, transpose, reshape around a stack  →  reshape [B, C, H, W] ↔ [B, C, 1, H·W]

The function is the same except for the order of float32 sums. Inputs and outputs of the component keep their
shapes, so the text needs one transpose. Linears on vectors, as in the time embedding, stay.
"""

# Principle, for the whole file: the Neural Engine is fastest with [B, C, 1, S], the sequence last (64-byte alignment
# of the last axis), linears as 1×1 convolutions and few memory copies. Source: Apple, "Deploying Transformers on
# the Apple Neural Engine" (machinelearning.apple.com/research/neural-engine-transformers), principles 1 and 3.

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn

from md_export.rewrites.tokens_as_channels import Form, use_form
from md_export.spec.sampler import OneStep

# The Neural Engine keeps activations as [B, C, 1, S], so that a norm over channels needs no transpose
# (ml-ane-transformers, reference/layer_norm.py). coremltools fuses this form, shift before scale, to one
# layer_norm over axis 1: passes/defs/optimize_normalization.py, fuse_layernorm_or_instancenorm, pattern 5.
# It fuses only if scale and shift are both present or both absent, after it removed factors of 1 and terms of
# 0. These values have no effect in float32 and keep the operation in the graph.
_INVISIBLE: Final = 2.0**-64
_ALMOST_ONE: Final = 1.0 - 2.0**-24


class ChannelLayerNorm(nn.LayerNorm):
    """LayerNorm over the channels of ``[B, C, 1, S]``, with the ``weight`` and ``bias`` of the original.

    It computes with ``scale`` and ``shift``, both ``[1, C, 1, 1]``, which are computed from these once.
    """

    scale: Tensor | None
    shift: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, 1, S]`` → ``[B, C, 1, S]``, normalized over C."""
        centred = x - x.mean(dim=1, keepdim=True)
        # Not square(): the pattern matches a product.
        variance = (centred * centred).mean(dim=1, keepdim=True)
        out = centred * torch.rsqrt(variance + self.eps)
        if self.scale is None or self.shift is None:
            return out
        return (out + self.shift) * self.scale


def to_channel_layer_norm(norm: nn.LayerNorm) -> None:
    """Change ``norm`` in place into a :class:`ChannelLayerNorm`."""
    (channels,) = norm.normalized_shape
    norm.__class__ = ChannelLayerNorm
    scale, shift = _affine(norm, channels)
    norm.register_buffer("scale", scale, persistent=False)
    norm.register_buffer("shift", shift, persistent=False)


def _affine(norm: nn.LayerNorm, channels: int) -> tuple[Tensor | None, Tensor | None]:
    """Return scale and beta/gamma as ``[1, C, 1, 1]``; None for a norm that has neither."""
    gamma = torch.ones(channels) if norm.weight is None else norm.weight.detach()
    beta = torch.zeros(channels) if norm.bias is None else norm.bias.detach()
    if bool((gamma == 1).all()) and bool((beta == 0).all()):
        return None, None
    scale = torch.where(gamma == 0, torch.full_like(gamma, _INVISIBLE), gamma)
    if bool((scale == 1).all()):
        scale = torch.cat([torch.full_like(scale[:1], _ALMOST_ONE), scale[1:]])
    shift = beta / scale
    if bool((shift == 0).all()):
        shift = torch.cat([torch.full_like(shift[:1], _INVISIBLE), shift[1:]])
    return scale[None, :, None, None], shift[None, :, None, None]


class ChannelFirst(Form):
    """``[B, C, 1, S]`` throughout; heads are reshapes of the channels: ``[B, heads, C/heads, S]``."""

    def enter(self, tokens: Tensor) -> Tensor:
        """``[B, S, C]`` → ``[B, C, 1, S]``."""
        return tokens.transpose(1, 2)[:, :, None]

    def leave(self, channels: Tensor) -> Tensor:
        """``[B, C, 1, S]`` → ``[B, S, C]``."""
        return channels[:, :, 0].transpose(1, 2)

    def flat(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` → ``[B, C, 1, H·W]``."""
        batch, channels, height, width = x.shape
        return x.reshape(batch, channels, 1, height * width)

    def unflat(self, x: Tensor, shape: Any) -> Tensor:
        """``[B, C, 1, H·W]`` → ``[B, C, H, W]``."""
        return x.reshape(*shape)

    def heads(self, x: Tensor, heads: int) -> Tensor:
        """``[B, C, 1, S]`` → ``[B, heads, C/heads, S]``: a reshape, no copy."""
        batch, channels, _, length = x.shape
        return x.reshape(batch, heads, channels // heads, length)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, weigh: Callable[[Tensor], Tensor], shape: Any) -> Tensor:  # noqa: ARG002
        """``[B, heads, d, Lq]`` and ``[B, heads, d, Lk]`` → ``[B, heads·d, 1, Lq]``.

        Each transpose is of an operand of a product, so it becomes a flag of matmul in a Core ML program.
        """
        weights = weigh(torch.matmul(q.transpose(-1, -2), k))
        out = torch.matmul(v, weights.transpose(-1, -2))
        return out.reshape(q.shape[0], -1, 1, q.shape[-1])

    def layer_norm(self, norm: nn.LayerNorm) -> None:
        """Change ``norm`` in place."""
        to_channel_layer_norm(norm)


def linear_to_conv2d(module: nn.Module, one_step: OneStep) -> int:  # noqa: ARG001 (the table's signature)
    """Rewrite in place; return the number of linears that became convolutions."""
    return use_form(module, ChannelFirst())


def count_conv2d(module: nn.Module) -> int:
    """Count 1×1 convolutions; a component without token linears, such as the lite decoder, also has some."""
    return sum(isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) for layer in module.modules())
