"""T2I-Adapter's encoder (Mou et al., arXiv 2302.08453): a condition picture → one residual for each level of the UNet.

The modules are those of diffusers' ``T2IAdapter`` of type ``full_adapter``, so its files load unchanged. A condition
picture can be computed from the edges of a picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from md_export.errors import ConfigError
from md_export.spec.tensors import Array


@dataclass(frozen=True)
class AdapterConfig:
    """``t2i_adapter/config.json`` with diffusers' fields; ``channels`` are the UNet's, outermost level first.

    ``in_channels``: 1 for edges, depth or a sketch, 3 for a colour picture.
    """

    IGNORED: ClassVar[tuple[str, ...]] = ()
    REQUIRED: ClassVar[Mapping[str, Any]] = {"adapter_type": "full_adapter"}

    in_channels: int = 3
    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    num_res_blocks: int = 2
    downscale_factor: int = 8

    def __post_init__(self) -> None:
        if self.in_channels not in (1, 3):
            raise ConfigError(f"in_channels={self.in_channels}: a condition picture has 1 or 3 channels")
        if self.downscale_factor not in (1, 2, 4, 8, 16):
            raise ConfigError(f"downscale_factor={self.downscale_factor}: use the VAE's factor: 1, 2, 4, 8 or 16")


class Unshuffle(nn.Module):
    """Move each square of ``factor``² pixels into the channels of one pixel, in the order of ``nn.PixelUnshuffle``."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` → ``[B, C·f², H/f, W/f]``; one axis at a time, because ``nn.PixelUnshuffle`` has rank 6."""
        batch, channels, height, width = x.shape
        f = self.factor
        rows = x.reshape(batch * channels, height // f, f, width).permute(0, 2, 1, 3)
        cells = rows.reshape(batch * channels * f, height // f, width // f, f).permute(0, 3, 1, 2)
        return cells.reshape(batch, channels * f * f, height // f, width // f)


class AdapterResnet(nn.Module):
    """3×3 convolution → ReLU → 1×1 convolution, with a residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.block2 = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.block2(F.relu(self.block1(x)))
        return out


class AdapterLevel(nn.Module):
    """[mean of 2×2] → [1×1 to the level's width] → residual blocks."""

    def __init__(self, c_in: int, c_out: int, blocks: int, down: bool) -> None:
        super().__init__()
        self.down = down
        self.in_conv = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else None
        self.resnets = nn.ModuleList([AdapterResnet(c_out) for _ in range(blocks)])

    def forward(self, x: Tensor) -> Tensor:
        if self.down:
            x = F.avg_pool2d(x, 2)
        if self.in_conv is not None:
            x = self.in_conv(x)
        for block in self.resnets:
            x = block(x)
        return x


class FullAdapter(nn.Module):
    """Unshuffled picture → 3×3 convolution → levels, outermost first."""

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__()
        widths = config.channels
        self.unshuffle = Unshuffle(config.downscale_factor)
        self.conv_in = nn.Conv2d(config.in_channels * config.downscale_factor**2, widths[0], 3, padding=1)
        inputs = (widths[0], *widths[:-1])
        self.body = nn.ModuleList(
            [AdapterLevel(inputs[i], widths[i], config.num_res_blocks, down=i > 0) for i in range(len(widths))]
        )

    def forward(self, condition: Tensor) -> tuple[Tensor, ...]:
        x = self.conv_in(self.unshuffle(condition))
        residuals = []
        for level in self.body:
            x = level(x)
            residuals.append(x)
        return tuple(residuals)


class T2IAdapter(nn.Module):
    """Encoder of the condition picture, stored in ``t2i_adapter/``."""

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__()
        self.config = config
        self.adapter = FullAdapter(config)

    def forward(self, condition: Tensor) -> tuple[Tensor, ...]:
        """``[B, in_channels, H, W]`` in [0, 1] → for each level of the UNet ``[B, channels, H/f/2ⁱ, W/f/2ⁱ]``."""
        out: tuple[Tensor, ...] = self.adapter(condition)
        return out


def residual_shapes(config: AdapterConfig, latent: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of the residuals for a latent ``[1, C, h, w]``, the outermost level first."""
    height, width = latent[2:]
    return tuple((1, width_, height >> level, width >> level) for level, width_ in enumerate(config.channels))


_Floats = NDArray[np.float64]
_SMOOTH: Final = (1.0, 2.0, 1.0)
_DIFFERENCE: Final = (-1.0, 0.0, 1.0)
# Threshold of an edge, as a share of a step from 0 to 1.
_STEEP: Final = 0.22


def edges(picture: Array, channels: int = 1) -> Array:
    """Return the edges of a ``[H, W, 3]`` picture in [0, 1]: ``[1, channels, H, W]`` float32, 1 on an edge, else 0.

    A pixel is an edge if Sobel's gradient, in the channel with the largest one, exceeds a threshold. Sums are in
    float64, so that the result is the same on every machine.
    """
    padded = np.pad(picture.astype(np.float64), ((1, 1), (1, 1), (0, 0)), mode="edge")
    along_x, along_y = _gradient(padded, axis=1), _gradient(padded, axis=0)
    steepness = np.sqrt(along_x**2 + along_y**2).max(axis=2) / sum(_SMOOTH)
    return np.repeat((steepness > _STEEP).astype(np.float32)[None, None], channels, axis=1)


def _gradient(padded: _Floats, axis: int) -> _Floats:
    """Return Sobel's gradient along one axis: the difference along it, smoothed along the other."""
    return _three(_three(padded, _DIFFERENCE, axis), _SMOOTH, 1 - axis)


def _three(values: _Floats, factors: tuple[float, ...], axis: int) -> _Floats:
    size = values.shape[axis] - 2
    moved = np.moveaxis(values, axis, 0)
    summed = sum(factor * moved[start : start + size] for start, factor in enumerate(factors))
    return np.moveaxis(np.asarray(summed), 0, axis)
