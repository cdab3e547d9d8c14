"""What VAE encoder and decoder share: config, mid block, level of ResNet blocks (AutoencoderKL's layout)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from md_export.components.layers import ResnetBlock
from md_export.errors import ConfigError


@dataclass(frozen=True)
class VAEConfig:
    """``vae/config.json``, diffusers' fields; channels outermost level first.

    MD's decoders differ from its encoder, hence the two ``decoder_*`` fields; left out, they follow
    AutoencoderKL (same channels, one more ResNet block a level).
    """

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 8
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    decoder_block_out_channels: tuple[int, ...] | None = None
    decoder_layers_per_block: int | None = None
    mid_block_add_attention: bool = True
    norm_num_groups: int = 32
    norm_eps: float = 1e-6
    scaling_factor: float = 1.0
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True

    def __post_init__(self) -> None:
        for channels in (*self.block_out_channels, *self.decoder_channels):
            if channels % self.norm_num_groups:
                raise ConfigError(f"norm_num_groups={self.norm_num_groups} does not divide {channels} channels")

    @property
    def decoder_channels(self) -> tuple[int, ...]:
        """Decoder channels, outermost level first."""
        return self.decoder_block_out_channels or self.block_out_channels

    @property
    def decoder_layers(self) -> int:
        """ResNet blocks on each decoder level."""
        return self.decoder_layers_per_block or self.layers_per_block + 1

    @property
    def downscale(self) -> int:
        """Picture pixels per latent pixel along one side (the paper's f)."""
        return int(2 ** (len(self.decoder_channels) - 1))

    def resnet(self, c_in: int, c_out: int) -> ResnetBlock:
        """A ResNet block without time embedding."""
        return ResnetBlock(c_in, c_out, self.norm_num_groups, self.norm_eps, None)


class SpatialAttention(nn.Module):
    """Single-head attention over all pixels, as in AutoencoderKL's mid block."""

    def __init__(self, channels: int, groups: int, eps: float) -> None:
        super().__init__()
        self.scale = channels**-0.5
        self.group_norm = nn.GroupNorm(groups, channels, eps=eps)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)
        q, k, v = self.to_q(tokens), self.to_k(tokens), self.to_v(tokens)
        scores = torch.matmul(q * self.scale, k.transpose(-1, -2))
        out = self.to_out[0](torch.matmul(scores.softmax(dim=-1), v))
        merged: Tensor = x + out.transpose(1, 2).reshape(batch, channels, height, width)
        return merged


class MidBlock(nn.Module):
    """ResNet block → [attention →] ResNet block at the innermost level."""

    def __init__(self, config: VAEConfig, channels: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([config.resnet(channels, channels) for _ in range(2)])
        attention = [SpatialAttention(channels, config.norm_num_groups, config.norm_eps)]
        self.attentions = nn.ModuleList(attention if config.mid_block_add_attention else [])

    def forward(self, x: Tensor) -> Tensor:
        x = self.resnets[0](x)
        for attention in self.attentions:
            x = attention(x)
        out: Tensor = self.resnets[1](x)
        return out


class VAEDownsample(nn.Module):
    """3×3 stride-2 convolution padded right and below only, as in AutoencoderKL."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return out
