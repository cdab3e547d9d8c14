"""VAE in AutoencoderKL's layout: config, the lite decoder of section 3.3, and the encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from md_export.errors import ConfigError
from md_export.models.layers import ResnetBlock, Upsample


@dataclass(frozen=True)
class VAEConfig:
    """``vae/config.json`` with diffusers' fields; channels are in order from the outermost level.

    MD's decoders differ from its encoder, so there are two ``decoder_*`` fields. By default they follow
    AutoencoderKL: the same channels, and one more ResNet block per level.
    """

    # Fields of diffusers without effect here, then those with only one supported value.
    IGNORED: ClassVar[tuple[str, ...]] = ("down_block_types", "up_block_types", "sample_size", "force_upcast")
    REQUIRED: ClassVar[Mapping[str, Any]] = {
        "act_fn": "silu",
        "shift_factor": None,
        "latents_mean": None,
        "latents_std": None,
    }

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
        """Channels of the decoder's levels, from the outermost."""
        return self.decoder_block_out_channels or self.block_out_channels

    @property
    def decoder_layers(self) -> int:
        """Number of ResNet blocks in each level of the decoder."""
        return self.decoder_layers_per_block or self.layers_per_block + 1

    @property
    def downscale(self) -> int:
        """Picture pixels per latent pixel along one side (the paper's f)."""
        return int(2 ** (len(self.decoder_channels) - 1))

    def resnet(self, c_in: int, c_out: int) -> ResnetBlock:
        """Return a ResNet block without time embedding."""
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


class DecoderLevel(nn.Module):
    """ResNet blocks of one level, then nearest ×2 and a 3×3 convolution unless it is the outermost."""

    def __init__(self, config: VAEConfig, c_in: int, c_out: int, upsample: bool) -> None:
        super().__init__()
        widths = [c_in] + [c_out] * (config.decoder_layers - 1)
        self.resnets = nn.ModuleList([config.resnet(width, c_out) for width in widths])
        self.upsamplers = nn.ModuleList([Upsample(c_out)] if upsample else [])

    def forward(self, x: Tensor) -> Tensor:
        for layer in (*self.resnets, *self.upsamplers):
            x = layer(x)
        return x


class Decoder(nn.Module):
    """AutoencoderKL's decoder: conv_in → mid block → levels, innermost first → norm → conv_out."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        channels = config.decoder_channels[::-1]
        self.conv_in = nn.Conv2d(config.latent_channels, channels[0], 3, padding=1)
        self.mid_block = MidBlock(config, channels[0])
        inputs = (channels[0], *channels[:-1])
        last = len(channels) - 1
        self.up_blocks = nn.ModuleList(
            [DecoderLevel(config, inputs[i], channels[i], upsample=i < last) for i in range(len(channels))]
        )
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, channels[-1], eps=config.norm_eps)
        self.conv_out = nn.Conv2d(channels[-1], config.out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(x))
        for level in self.up_blocks:
            x = level(x)
        out: Tensor = self.conv_out(F.silu(self.conv_norm_out(x)))
        return out


class VAEDecoder(nn.Module):
    """``decoder.*`` and ``post_quant_conv`` of a ``vae/`` folder."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        latent = config.latent_channels
        self.post_quant_conv = nn.Conv2d(latent, latent, 1) if config.use_post_quant_conv else None
        self.decoder = Decoder(config)

    def forward(self, latent: Tensor) -> Tensor:
        """``[B, latent_channels, h, w]``, already divided by the scaling factor → ``[B, 3, f·h, f·w]`` in [-1, 1]."""
        out: Tensor = self.decoder(latent if self.post_quant_conv is None else self.post_quant_conv(latent))
        return out


class EncoderLevel(nn.Module):
    """ResNet blocks of one level, then a stride-2 convolution unless it is the innermost."""

    def __init__(self, config: VAEConfig, c_in: int, c_out: int, downsample: bool) -> None:
        super().__init__()
        widths = [c_in] + [c_out] * (config.layers_per_block - 1)
        self.resnets = nn.ModuleList([config.resnet(width, c_out) for width in widths])
        self.downsamplers = nn.ModuleList([VAEDownsample(c_out)] if downsample else [])

    def forward(self, x: Tensor) -> Tensor:
        for layer in (*self.resnets, *self.downsamplers):
            x = layer(x)
        return x


class Encoder(nn.Module):
    """AutoencoderKL's encoder; its output has mean and log-variance, 2·latent_channels."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        channels = config.block_out_channels
        self.conv_in = nn.Conv2d(config.in_channels, channels[0], 3, padding=1)
        inputs = (channels[0], *channels[:-1])
        last = len(channels) - 1
        self.down_blocks = nn.ModuleList(
            [EncoderLevel(config, inputs[i], channels[i], downsample=i < last) for i in range(len(channels))]
        )
        self.mid_block = MidBlock(config, channels[-1])
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, channels[-1], eps=config.norm_eps)
        self.conv_out = nn.Conv2d(channels[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down_blocks:
            x = level(x)
        out: Tensor = self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))
        return out


class VAEEncoder(nn.Module):
    """``encoder.*`` and ``quant_conv`` of a ``vae/`` folder."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        double = 2 * config.latent_channels
        self.encoder = Encoder(config)
        self.quant_conv = nn.Conv2d(double, double, 1) if config.use_quant_conv else None

    def forward(self, image: Tensor) -> Tensor:
        """``[B, 3, H, W]`` in [-1, 1] → latent mean ``[B, latent_channels, H/f, W/f]``, not yet scaled."""
        moments = self.encoder(image)
        if self.quant_conv is not None:
            moments = self.quant_conv(moments)
        mean: Tensor = moments.chunk(2, dim=1)[0]
        return mean
