"""The tiny autoencoder (TAESD, by Ollin Boer Bohan) in the layout of diffusers' AutoencoderTiny.

Its files load unchanged. It has plain convolutions with ReLU and residuals, and a few megabytes instead of hundreds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from md_export.errors import ConfigError

TINY_CLASS: Final = "AutoencoderTiny"
# Inner channels of a normalized block, as a multiple of its channels, and groups of its norm.
_WIDER: Final = 4


@dataclass(frozen=True)
class TinyConfig:
    """``vae/config.json`` of AutoencoderTiny, with diffusers' defaults.

    Widths and block counts are in the order in which they run: for the encoder starting at the picture, for the decoder
    starting at the latent. ``use_midblock_gn``: blocks of the smallest maps have a part with a GroupNorm, as in the
    autoencoder for FLUX.2's latents. The author uses this name; diffusers does not have the field.
    """

    IGNORED: ClassVar[tuple[str, ...]] = ("block_out_channels", "force_upcast", "latent_magnitude", "latent_shift")
    REQUIRED: ClassVar[Mapping[str, Any]] = {
        "act_fn": "relu",
        "upsample_fn": "nearest",
        "upsampling_scaling_factor": 2,
        "shift_factor": 0.0,
    }

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    encoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    decoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    num_encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
    num_decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)
    scaling_factor: float = 1.0
    use_midblock_gn: bool = False

    def __post_init__(self) -> None:
        levels = len(self.decoder_block_out_channels)
        for field in ("encoder_block_out_channels", "num_encoder_blocks", "num_decoder_blocks"):
            if len(getattr(self, field)) != levels:
                raise ConfigError(f"{field} must have {levels} entries, as decoder_block_out_channels has")

    @property
    def downscale(self) -> int:
        """Picture pixels per latent pixel along one side."""
        return int(2 ** (len(self.decoder_block_out_channels) - 1))


class TinyBlock(nn.Module):
    """Three 3×3 convolutions with ReLU between them, plus the input, then ReLU.

    ``normalized``: a branch of 1×1 convolution, GroupNorm, 1×1 convolution is first added to the input.
    """

    def __init__(self, channels: int, normalized: bool = False) -> None:
        super().__init__()
        wide = channels * _WIDER
        inner = [nn.Conv2d(channels, wide, 1, bias=False), nn.GroupNorm(_WIDER, wide), nn.ReLU()]
        self.pool = nn.Sequential(*inner, nn.Conv2d(wide, channels, 1, bias=False)) if normalized else None
        convs = [nn.Conv2d(channels, channels, 3, padding=1) for _ in range(3)]
        self.conv = nn.Sequential(convs[0], nn.ReLU(), convs[1], nn.ReLU(), convs[2])

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.pool is None else x + self.pool(x)
        out: Tensor = F.relu(self.conv(x) + x)
        return out


class DoubleSize(nn.Module):
    """Repeat each pixel as 2×2 pixels."""

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2.0, mode="nearest")


class TinyDecoder(nn.Module):
    """``decoder.*`` of a ``vae/`` folder."""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        widths, last = config.decoder_block_out_channels, len(config.decoder_block_out_channels) - 1
        layers: list[nn.Module] = [nn.Conv2d(config.latent_channels, widths[0], 3, padding=1), nn.ReLU()]
        for level, (width, blocks) in enumerate(zip(widths, config.num_decoder_blocks, strict=True)):
            layers += [TinyBlock(width, config.use_midblock_gn and level == 0) for _ in range(blocks)]
            layers += [DoubleSize()] if level < last else []
            out = width if level < last else config.out_channels
            layers.append(nn.Conv2d(width, out, 3, padding=1, bias=level == last))
        self.decoder = nn.ModuleDict({"layers": nn.Sequential(*layers)})

    def forward(self, latent: Tensor) -> Tensor:
        """``[B, latent_channels, h, w]``, divided by the scaling factor → ``[B, 3, f·h, f·w]`` in about [-1, 1]."""
        out: Tensor = self.decoder["layers"](torch.tanh(latent / 3) * 3) * 2 - 1
        return out


class TinyEncoder(nn.Module):
    """``encoder.*`` of a ``vae/`` folder."""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = config.in_channels
        last = len(config.encoder_block_out_channels) - 1
        widths = zip(config.encoder_block_out_channels, config.num_encoder_blocks, strict=True)
        for level, (width, blocks) in enumerate(widths):
            halves = bool(layers)
            layers.append(nn.Conv2d(before, width, 3, padding=1, stride=2 if halves else 1, bias=not halves))
            layers += [TinyBlock(width, config.use_midblock_gn and level == last) for _ in range(blocks)]
            before = width
        layers.append(nn.Conv2d(before, config.latent_channels, 3, padding=1))
        self.encoder = nn.ModuleDict({"layers": nn.Sequential(*layers)})

    def forward(self, image: Tensor) -> Tensor:
        """``[B, 3, H, W]`` in [-1, 1] → latent ``[B, latent_channels, H/f, W/f]``, not yet scaled."""
        out: Tensor = self.encoder["layers"]((image + 1) / 2)
        return out
