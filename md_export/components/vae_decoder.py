"""The VAE decoder and, by its config, MobileDiffusion's lite decoder (section 3.3): latent → picture."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from md_export.components.unet_blocks import Upsample
from md_export.components.vae import MidBlock, VAEConfig


class DecoderLevel(nn.Module):
    """ResNet blocks of one level, then nearest ×2 + 3×3 convolution unless it is the outermost."""

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
