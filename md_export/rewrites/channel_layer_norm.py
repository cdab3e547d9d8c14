"""LayerNorm over the channels of ``[B, C, 1, S]``, written so that coremltools makes one ``layer_norm`` op of it.

layer_norm(x: [B, S, C])  →  (z·rsqrt(mean_C(z²) + eps) + beta/gamma)·gamma,  z = x - mean_C(x),  x: [B, C, 1, S]
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

# The Neural Engine keeps activations as [B, C, 1, S], so that a norm over channels needs no transpose
# (ml-ane-transformers, reference/layer_norm.py). coremltools fuses this form, shift before scale, to a
# layer_norm over axis 1: passes/defs/optimize_normalization.py, fuse_layernorm_or_instancenorm, pattern 5.
# It fuses only if scale and shift are both there or both absent after factors of 1 and terms of 0 are
# removed. Hence values that nothing can see in float32, and that keep the operation in the graph.
_INVISIBLE: Final = 2.0**-64
_ALMOST_ONE: Final = 1.0 - 2.0**-24


class ChannelLayerNorm(nn.LayerNorm):
    """Keeps ``weight`` and ``bias`` of the LayerNorm it was.

    The values in use are ``scale`` and ``shift``, both ``[1, C, 1, 1]``, made from them once.
    """

    scale: Tensor | None
    shift: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, 1, S]`` → ``[B, C, 1, S]``, normalized over C."""
        centred = x - x.mean(dim=1, keepdim=True)
        # Not square(): the pattern asks for a product.
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
    """Scale and beta/gamma as ``[1, C, 1, 1]``; None for a norm that has neither."""
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
