"""What a level of MobileDiffusion's UNet is built from: transformer stacks and resampling around convolution blocks."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from md_export.components.layers import Attention, FeedForward, attention_weights
from md_export.components.unet_config import MDUNetConfig


class TransformerBlock(nn.Module):
    """[LayerNorm + SA] → LayerNorm + CA → LayerNorm + gated feed-forward, each with a residual."""

    def __init__(self, config: MDUNetConfig, dim: int, self_attention: bool) -> None:
        super().__init__()
        head_dim = config.attention_head_dim

        def weights() -> nn.Module:
            return attention_weights(config.attention_kind, config.attention_relu_scale)

        self.norm1 = nn.LayerNorm(dim) if self_attention else None
        self.attn1 = Attention(dim, head_dim, None, weights()) if self_attention else None
        self.norm2 = nn.LayerNorm(dim)
        self.attn2 = Attention(dim, head_dim, config.cross_attention_dim, weights())
        self.norm3 = nn.LayerNorm(dim)
        self.ff = FeedForward(dim, config.ff_expansion, config.ff_activation)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        if self.attn1 is not None and self.norm1 is not None:
            x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        out: Tensor = x + self.ff(self.norm3(x))
        return out


class TransformerStack(nn.Module):
    """GroupNorm → linear in → blocks → linear out → residual over ``[B, C, H, W]``."""

    def __init__(self, config: MDUNetConfig, dim: int, layers: int, self_attention: bool) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(config.norm_num_groups, dim, eps=1e-6)
        self.proj_in = nn.Linear(dim, dim)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(config, dim, self_attention) for _ in range(layers)])
        self.proj_out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        tokens = self.proj_in(self.norm(x).flatten(2).transpose(1, 2))
        for block in self.transformer_blocks:
            tokens = block(tokens, context)
        out: Tensor = x + self.proj_out(tokens).transpose(1, 2).reshape(batch, channels, height, width)
        return out


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


class UNetBlock(nn.Module):
    """One level of the UNet: convolution blocks, each followed by its transformer stack if it has one."""

    def __init__(
        self, resnets: list[nn.Module], attentions: list[nn.Module], resample: nn.Module | None, kind: str
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.attentions = nn.ModuleList(attentions)
        if resample is not None:
            setattr(self, f"{kind}samplers", nn.ModuleList([resample]))
        self.resample_name = None if resample is None else f"{kind}samplers"

    def layer(self, index: int, x: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        """Convolution block ``index`` and its transformer stack."""
        x = self.resnets[index](x, emb)
        out: Tensor = self.attentions[index](x, context) if len(self.attentions) else x
        return out

    def resample(self, x: Tensor) -> Tensor:
        """The level's down- or up-sampler; the identity where the level has none."""
        if self.resample_name is None:
            return x
        out: Tensor = getattr(self, self.resample_name)[0](x)
        return out
