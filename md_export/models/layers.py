"""Layers shared by the UNet and the VAE: convolution blocks, attention, gated feed-forward.

Module and parameter names are those of diffusers, so that its state dicts load unchanged.
All feature maps are ``[B, C, H, W]``, all token sequences ``[B, L, C]``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Gelu(nn.Module):
    """Exact (erf) GELU; a separate module, so that a rewrite can find and replace it."""

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x)


class Swish(nn.Module):
    """x·sigmoid(x), the paper's substitute for GELU (section 3.2)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x)


class Softmax(nn.Module):
    """Softmax over the last axis of ``[B, heads, Lq, Lk]`` attention scores."""

    def forward(self, scores: Tensor) -> Tensor:
        return scores.softmax(dim=-1)


class Relu(nn.Module):
    """relu(scores)·scale / L over ``[B, heads, Lq, Lk]`` (Wortsman et al., arXiv 2309.08586).

    ``scale`` comes from the checkpoint's config; L is the number of keys, read from the shape.
    """

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, scores: Tensor) -> Tensor:
        return F.relu(scores) * (self.scale / scores.shape[-1])


class TimestepEmbedding(nn.Module):
    """Sinusoidal embedding followed by a two-layer MLP: ``[B]`` → ``[B, dim]``.

    Cosine first and no frequency shift, as in Stable Diffusion. Angle, sine and cosine are computed in
    float32: at t = 999 half precision has an error of up to 0.32. Code that converts this module to half
    precision must keep ``frequencies`` in float32.
    """

    frequencies: Tensor

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        half = channels // 2
        frequencies = torch.exp(-math.log(10000.0) * torch.arange(half, dtype=torch.float64) / half)
        self.register_buffer("frequencies", frequencies.float(), persistent=False)
        self.linear_1 = nn.Linear(channels, dim)
        self.linear_2 = nn.Linear(dim, dim)

    def forward(self, timestep: Tensor) -> Tensor:
        angles = timestep.float()[:, None] * self.frequencies.float()[None, :]
        embedding = torch.cat([angles.cos(), angles.sin()], dim=-1)
        hidden = F.silu(self.linear_1(embedding.to(self.linear_1.weight.dtype)))
        out: Tensor = self.linear_2(hidden)
        return out


class ResnetBlock(nn.Module):
    """Stable Diffusion's ResNet block, called FullConv in the paper; ``time_dim=None`` in the VAE."""

    def __init__(self, c_in: int, c_out: int, groups: int, eps: float, time_dim: int | None) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, c_in, eps=eps)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.time_emb_proj = None if time_dim is None else nn.Linear(time_dim, c_out)
        self.norm2 = nn.GroupNorm(groups, c_out, eps=eps)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.conv_shortcut = None if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor, emb: Tensor | None = None) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        if self.time_emb_proj is not None and emb is not None:
            h = h + self.time_emb_proj(F.silu(emb))[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        out: Tensor = h + (x if self.conv_shortcut is None else self.conv_shortcut(x))
        return out


class SepConvBlock(nn.Module):
    """Separable convolution (SPConv): depthwise 3×3 → GroupNorm → 1×1 up → swish → 1×1 down.

    ``time``: where the time embedding is applied: ``scale_shift`` on the norm's output (h·(1+s)+b),
    ``after_dw`` added before the norm, ``hidden`` added to the expanded channels.
    """

    def __init__(self, c_in: int, c_out: int, hidden: int, groups: int, eps: float, time_dim: int, time: str) -> None:
        super().__init__()
        self.time = time
        self.conv_dw = nn.Conv2d(c_in, c_in, 3, padding=1, groups=c_in)
        self.norm = nn.GroupNorm(groups, c_in, eps=eps)
        self.conv_pw1 = nn.Conv2d(c_in, hidden, 1)
        self.conv_pw2 = nn.Conv2d(hidden, c_out, 1)
        time_out = {"scale_shift": 2 * c_in, "after_dw": c_in, "hidden": hidden}[time]
        self.time_emb_proj = nn.Linear(time_dim, time_out)
        self.conv_shortcut = None if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        shift = self.time_emb_proj(F.silu(emb))[:, :, None, None]
        h = self.conv_dw(x)
        if self.time == "after_dw":
            h = h + shift
        h = self.norm(h)
        if self.time == "scale_shift":
            scale, bias = shift.chunk(2, dim=1)
            h = h * (1 + scale) + bias
        h = self.conv_pw1(h)
        if self.time == "hidden":
            h = h + shift
        h = self.conv_pw2(F.silu(h))
        out: Tensor = h + (x if self.conv_shortcut is None else self.conv_shortcut(x))
        return out


class Attention(nn.Module):
    """Multi-head attention; self-attention has one projection ``to_kv`` for both K and V (section 3.2).

    ``context_dim``: None for self-attention, else K and V are projected from ``[B, Lk, context_dim]``. ``bias``: the
    projections to Q, K and V have a bias.
    """

    def __init__(
        self, dim: int, head_dim: int, context_dim: int | None, weights: nn.Module, bias: bool = False
    ) -> None:
        super().__init__()
        self.heads, self.head_dim = dim // head_dim, head_dim
        self.scale = head_dim**-0.5
        self.to_q = nn.Linear(dim, dim, bias=bias)
        if context_dim is None:
            self.to_kv = nn.Linear(dim, dim, bias=bias)
        else:
            self.to_k = nn.Linear(context_dim, dim, bias=bias)
            self.to_v = nn.Linear(context_dim, dim, bias=bias)
        self.shares_kv = context_dim is None
        self.weights = weights
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])

    def keys_values(self, source: Tensor, form: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Return K and V of ``source`` after ``form``; the same tensor if they share a projection."""
        if self.shares_kv:
            both = form(self.to_kv(source))
            return both, both
        return form(self.to_k(source)), form(self.to_v(source))

    def _split_heads(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        return x.reshape(batch, length, self.heads, self.head_dim).transpose(1, 2)

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """``[B, Lq, C]`` → ``[B, Lq, C]``; ``mask`` is added to the scores ``[B, heads, Lq, Lk]``."""
        q = self._split_heads(self.to_q(x))
        k, v = self.keys_values(x if context is None else context, self._split_heads)
        scores = torch.matmul(q * self.scale, k.transpose(-1, -2))
        scores = scores if mask is None else scores + mask
        out = torch.matmul(self.weights(scores), v)
        batch, _, length, _ = out.shape
        merged: Tensor = self.to_out[0](out.transpose(1, 2).reshape(batch, length, -1))
        return merged


class GluProjection(nn.Module):
    """``[…, C]`` → ``[…, inner]``: value · act(gate), halves in the order [value | gate] as in diffusers."""

    def __init__(self, dim: int, inner: int, act: str) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, 2 * inner)
        self.act = Gelu() if act == "gelu" else Swish()

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        out: Tensor = value * self.act(gate)
        return out


class FeedForward(nn.Module):
    """Gated feed-forward; ``net.1`` is an empty slot for diffusers' dropout."""

    def __init__(self, dim: int, expansion: int, act: str) -> None:
        super().__init__()
        inner = dim * expansion
        self.net = nn.ModuleList([GluProjection(dim, inner, act), nn.Identity(), nn.Linear(inner, dim)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.net:
            x = layer(x)
        return x


class Downsample(nn.Module):
    """3×3 stride-2 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return out


class SeparableDownsample(nn.Module):
    """Depthwise 3×3 stride-2 convolution followed by a 1×1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(channels, channels, 3, stride=2, padding=1, groups=channels)
        self.conv_pw = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv_pw(self.conv_dw(x))
        return out


class Upsample(nn.Module):
    """Nearest ×2 followed by a 3×3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out
