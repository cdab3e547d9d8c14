"""MobileDiffusion's UNet (arXiv 2311.16567, section 3 and table 6), built from its config.

Down-1 FullConv, Down-2 FullConv + cross-attention, Down-3 and Up-3 separable convolutions with
self- and cross-attention, Up-2 FullConv + cross-attention, Up-1 FullConv. Figure 2 of the paper does
not define all connections; the fields of :class:`MDUNetConfig` allow the reconstructions that have the
published parameter count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from md_export.errors import ConfigError
from md_export.models.layers import (
    Attention,
    Downsample,
    FeedForward,
    Relu,
    ResnetBlock,
    SeparableDownsample,
    SepConvBlock,
    Softmax,
    TimestepEmbedding,
    Upsample,
)

_CHOICES: Final[Mapping[str, tuple[str, ...]]] = {
    "ff_activation": ("gelu", "swish"),
    "attention_kind": ("softmax", "relu"),
    "sep_conv_time": ("scale_shift", "after_dw", "hidden"),
    "sep_conv_expansion_of": ("in", "out"),
}


@dataclass(frozen=True)
class MDUNetConfig:
    """``unet/config.json``, in which every field is optional. Channels are counts, sizes are in latent pixels."""

    IGNORED: ClassVar[tuple[str, ...]] = ()
    REQUIRED: ClassVar[Mapping[str, Any]] = {}
    FOLDER: ClassVar[str] = "unet"
    why_no_adapter: ClassVar[str] = ""

    sample_size: int = 64
    in_channels: int = 8
    out_channels: int = 8
    block_out_channels: tuple[int, int, int] = (320, 640, 1024)
    cross_attention_dim: int = 768
    attention_head_dim: int = 64
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    time_embed_dim: int = 1280
    ff_expansion: int = 3
    ff_activation: str = "swish"
    attention_kind: str = "softmax"
    attention_relu_scale: float = 1.0
    down_layers: int = 3
    up_layers: int = 3
    sep_conv_expansion: int = 4
    sep_conv_expansion_of: str = "in"
    sep_conv_time: str = "scale_shift"
    unified_inner: bool = True
    separable_downsamplers: bool = False

    def __post_init__(self) -> None:
        for field, allowed in _CHOICES.items():
            if getattr(self, field) not in allowed:
                raise ConfigError(f"{field}={getattr(self, field)!r} is unknown; use one of {', '.join(allowed)}")
        if len(self.block_out_channels) != 3:
            raise ConfigError(
                f"block_out_channels has {len(self.block_out_channels)} entries; the MD UNet has three levels"
            )
        for channels in self.block_out_channels:
            if channels % self.norm_num_groups:
                raise ConfigError(f"norm_num_groups={self.norm_num_groups} does not divide {channels} channels")
        for channels in self.block_out_channels[1:]:
            if channels % self.attention_head_dim:
                raise ConfigError(f"attention_head_dim={self.attention_head_dim} does not divide {channels} channels")
        if self.sample_size % 4:
            raise ConfigError(f"sample_size={self.sample_size} must be a multiple of 4: the UNet halves it twice")

    @property
    def noise_channels(self) -> int:
        """Channels of the output."""
        return self.out_channels

    @property
    def text_channels(self) -> int:
        """Width of the text embeddings for cross-attention."""
        return self.cross_attention_dim

    @property
    def halvings(self) -> int:
        """Number of times that the down path halves the side of a latent."""
        return 2


class TransformerBlock(nn.Module):
    """[LayerNorm + SA] → LayerNorm + CA → LayerNorm + gated feed-forward, each with a residual."""

    def __init__(self, config: MDUNetConfig, dim: int, self_attention: bool) -> None:
        super().__init__()
        head_dim = config.attention_head_dim

        def weights() -> nn.Module:
            return Softmax() if config.attention_kind == "softmax" else Relu(config.attention_relu_scale)

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


class UNetBlock(nn.Module):
    """One level of the UNet: convolution blocks, each followed by its transformer stack if it has one."""

    def __init__(
        self, resnets: list[nn.Module], attentions: list[nn.Module], resample: nn.Module | None, kind: str
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.attentions = nn.ModuleList(attentions)
        self.resample_name = None if resample is None else f"{kind}samplers"
        if resample is not None:
            setattr(self, f"{kind}samplers", nn.ModuleList([resample]))

    def layer(self, index: int, x: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        """Return the output of convolution block ``index`` and its transformer stack."""
        x = self.resnets[index](x, emb)
        out: Tensor = self.attentions[index](x, context) if len(self.attentions) else x
        return out

    def resample(self, x: Tensor) -> Tensor:
        """Return the output of the level's down- or upsampler; ``x`` if the level has none."""
        if self.resample_name is None:
            return x
        out: Tensor = getattr(self, self.resample_name)[0](x)
        return out


def _levels(blocks: nn.ModuleList) -> list[UNetBlock]:
    return [cast(UNetBlock, block) for block in blocks]


class DownPath(nn.Module):
    """Down path of the UNet, and the builders of blocks for both paths."""

    def __init__(self, config: MDUNetConfig, in_channels: int) -> None:
        super().__init__()
        self.config = config
        c1, c2, c3 = config.block_out_channels
        self.conv_in = nn.Conv2d(in_channels, c1, 3, padding=1)
        self.time_embedding = TimestepEmbedding(c1, config.time_embed_dim)
        self.down_blocks = nn.ModuleList(
            [
                UNetBlock([self._full(c1, c1)], [], self._downsampler(c1), "down"),
                UNetBlock([self._full(c1, c2)], [self._outer(c2)], self._downsampler(c2), "down"),
                UNetBlock([self._sep(c2, c3), self._sep(c3, c3)], self._inner(c3, config.down_layers, 2), None, "down"),
            ]
        )

    def _full(self, c_in: int, c_out: int) -> ResnetBlock:
        return ResnetBlock(c_in, c_out, *self._norm_and_time())

    def _sep(self, c_in: int, c_out: int) -> SepConvBlock:
        width = c_in if self.config.sep_conv_expansion_of == "in" else c_out
        hidden = self.config.sep_conv_expansion * width
        return SepConvBlock(c_in, c_out, hidden, *self._norm_and_time(), self.config.sep_conv_time)

    def _norm_and_time(self) -> tuple[int, float, int]:
        """Return groups and epsilon of a block's norms, and the width of the time embedding."""
        return self.config.norm_num_groups, self.config.norm_eps, self.config.time_embed_dim

    def _outer(self, dim: int) -> TransformerStack:
        return TransformerStack(self.config, dim, layers=1, self_attention=False)

    def _inner(self, dim: int, layers: int, count: int) -> list[nn.Module]:
        return [TransformerStack(self.config, dim, layers, self_attention=True) for _ in range(count)]

    def _downsampler(self, channels: int) -> nn.Module:
        return SeparableDownsample(channels) if self.config.separable_downsamplers else Downsample(channels)

    def descend(
        self, x: Tensor, emb: Tensor, context: Tensor, residuals: Sequence[Tensor] = ()
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the innermost map and the skip connections for the first convolution's output ``x``.

        ``residuals``: added to each level's last map before downsampling; one per level, or empty.
        """
        skips = [x]
        for level, block in enumerate(_levels(self.down_blocks)):
            for index in range(len(block.resnets)):
                x = block.layer(index, x, emb, context)
                if residuals and index == len(block.resnets) - 1:
                    x = x + residuals[level]
                skips.append(x)
            if block.resample_name is not None:
                x = block.resample(x)
                skips.append(x)
        if self.config.unified_inner:
            # Down-2's downsampled output and Down-3's two outputs are used only inside the unified 16×16 module.
            del skips[-3:]
        return x, skips


class MDUNet(DownPath):
    """The denoiser, called once per step."""

    def __init__(self, config: MDUNetConfig) -> None:
        super().__init__(config, config.in_channels)
        c1, c2, c3 = config.block_out_channels
        inner_skips = (0, 0, 0) if config.unified_inner else (c3, c3, c2)
        self.up_blocks = nn.ModuleList(
            [
                UNetBlock(
                    [self._sep(c3 + skip, c3) for skip in inner_skips],
                    self._inner(c3, config.up_layers, 3),
                    Upsample(c3),
                    "up",
                ),
                UNetBlock(
                    [self._full(c3 + c2, c2), self._full(c2 + c1, c2)],
                    [self._outer(c2), self._outer(c2)],
                    Upsample(c2),
                    "up",
                ),
                UNetBlock([self._full(c2 + c1, c1), self._full(c1 + c1, c1)], [], None, "up"),
            ]
        )
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, c1, eps=config.norm_eps)
        self.conv_out = nn.Conv2d(c1, config.out_channels, 3, padding=1)

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, *residuals: Tensor) -> Tensor:
        """Predict noise, v or x0, depending on the checkpoint's scheduler.

        Args:
            sample: latent ``[B, in_channels, H, W]``, H and W multiples of 4.
            timestep: ``[B]`` or ``[1]``, 0…999, any float dtype; it is not computed in half precision.
            encoder_hidden_states: text ``[B, L, cross_attention_dim]``.
            residuals: from an adapter, one for each down level's last map, added before downsampling; or from a
                ControlNet, one for each skip connection and then one for the innermost map. All or none.

        Returns:
            ``[B, out_channels, H, W]`` in the model's dtype.
        """
        emb = self.time_embedding(timestep)
        of_levels = residuals if len(residuals) == len(self.down_blocks) else ()
        x, skips = self.descend(self.conv_in(sample), emb, encoder_hidden_states, of_levels)
        if residuals and not of_levels:
            *of_skips, middle = residuals
            x, skips = x + middle, [skip + one for skip, one in zip(skips, of_skips, strict=True)]
        for level, block in enumerate(_levels(self.up_blocks)):
            takes_skips = level > 0 or not self.config.unified_inner
            for index in range(len(block.resnets)):
                x = torch.cat([x, skips.pop()], dim=1) if takes_skips else x
                x = block.layer(index, x, emb, encoder_hidden_states)
            x = block.resample(x)
        out: Tensor = self.conv_out(F.silu(self.conv_norm_out(x)))
        return out
