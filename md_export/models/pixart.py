"""PixArt-α's and -Σ's transformer (arXiv 2310.00426, 2403.04692): the same function as diffusers' module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from md_export.errors import ConfigError
from md_export.models.layers import Attention, Softmax
from md_export.models.patch_config import PLAIN, PatchConfig
from md_export.models.patch_transformer import (
    MODULATIONS,
    Cells,
    Conditioning,
    Modulation,
    PatchBlock,
    PatchTransformer,
    plain_norm,
)
from md_export.models.text_encoder import MASKED

# Size of the PixArt-α model that also embeds the picture's size and aspect ratio.
_SIZED: Final = 128


@dataclass(frozen=True)
class PixArtConfig(PatchConfig):
    """``transformer/config.json`` of PixArtTransformer2DModel.

    ``use_additional_conditions``: the model embeds the picture's height, width and aspect ratio; null is true for
    a ``sample_size`` of 128, as in diffusers.
    """

    REQUIRED: ClassVar[Mapping[str, Any]] = {**PLAIN, "norm_type": "ada_norm_single"}

    sample_size: int = 128
    out_channels: int | None = 8
    norm_eps: float = 1e-6
    cross_attention_dim: int = 1152
    caption_channels: int = 4096
    interpolation_scale: int | None = None
    use_additional_conditions: bool | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cross_attention_dim != self.width:
            raise ConfigError(
                f"cross_attention_dim={self.cross_attention_dim} must be num_attention_heads times "
                f"attention_head_dim, {self.width}: captions are projected to that many channels"
            )
        if self.embeds_size and self.width % 3:
            raise ConfigError(f"use_additional_conditions needs a width that 3 divides, not {self.width}")

    @property
    def text_channels(self) -> int:
        """Width of the text embeddings."""
        return self.caption_channels

    @property
    def scale(self) -> float:
        """Divisor of the positions; by default computed from the size as in diffusers."""
        return float(self.interpolation_scale or max(self.sample_size // 64, 1))

    @property
    def embeds_size(self) -> bool:
        """Whether the picture's size and aspect ratio are embedded."""
        asked = self.use_additional_conditions
        return self.sample_size == _SIZED if asked is None else asked


class CaptionProjection(nn.Module):
    """Linear, tanh GELU, linear: from the text encoder's channels to the transformer's."""

    def __init__(self, caption: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(caption, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear_2(F.gelu(self.linear_1(x), approximate="tanh"))
        return out


class PixArtBlock(PatchBlock):
    """A block with cross-attention, and a table that is added to the modulation, which all blocks share."""

    def __init__(self, config: PixArtConfig) -> None:
        super().__init__(config)
        width = config.width
        self.scale_shift_table = nn.Parameter(torch.empty(MODULATIONS, width).normal_(std=width**-0.5))
        self.attn2 = Attention(width, config.attention_head_dim, width, Softmax(), bias=True)
        self.norm1, self.norm2 = plain_norm(width, config.norm_eps), plain_norm(width, config.norm_eps)

    def forward(self, x: Tensor, modulation: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """Tokens, modulation ``[1, 6, C]``, text tokens and a mask that is added to their scores → tokens."""
        by = (self.scale_shift_table[None] + modulation).unbind(1)
        x = self.gated(x, self.attn1, self.norm1, by[:3])
        x = x + self.attn2(x, text, mask)
        return self.gated(x, self.ff, self.norm2, by[3:])


class PixArt(PatchTransformer):
    """``transformer/`` of a PixArt checkpoint, for latents of ``cells``, each of ``downscale²`` pixels."""

    def __init__(self, config: PixArtConfig, cells: Cells, downscale: int) -> None:
        super().__init__(config, cells)
        width, (high, wide) = config.width, (side * downscale for side in cells)
        self.transformer_blocks = nn.ModuleList([PixArtBlock(config) for _ in range(config.num_layers)])
        self.scale_shift_table = nn.Parameter(torch.empty(2, width).normal_(std=width**-0.5))
        self.proj_out = nn.Linear(width, self.outputs)
        size = torch.tensor([high, wide, high / wide]) if config.embeds_size else None
        self.adaln_single = Modulation(width, Conditioning(width, 0, size=size))
        self.caption_projection = CaptionProjection(config.caption_channels, width)
        self.heads = config.num_attention_heads

    def forward(
        self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, encoder_attention_mask: Tensor
    ) -> Tensor:
        """``[B, C, H, W]``, ``[1]``, ``[B, L, D]``, ``[B, L]`` 1 for tokens and 0 for padding → ``[B, C, H, W]``."""
        x = self.layout.enter(self.pos_embed(sample))
        conditioning = self.adaln_single.emb(timestep)
        modulation = self.adaln_single(conditioning)
        text = self.caption_projection(self.layout.text(encoder_hidden_states))
        mask = self.layout.mask((1 - encoder_attention_mask) * MASKED, self.heads)
        for block in self.transformer_blocks:
            x = block(x, modulation, text, mask)
        shift, scale = (self.scale_shift_table[None] + conditioning[:, None]).unbind(1)
        return self.made(self.proj_out(self.modulated(self.norm_out(x), shift, scale)))
