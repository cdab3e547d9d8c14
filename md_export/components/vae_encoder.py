"""The VAE encoder: picture → latent mean. Training and in-painting need it; one-step generation does not."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from md_export.components.vae import MidBlock, VAEConfig, VAEDownsample


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
    """AutoencoderKL's encoder; its output holds mean and log-variance, 2·latent_channels."""

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
