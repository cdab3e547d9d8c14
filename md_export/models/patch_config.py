"""Fields of ``transformer/config.json`` that DiT and PixArt share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from md_export.errors import ConfigError

# Limit of the table of positions: several times the size in any known model of this kind.
_LARGEST_TABLE: Final = 1 << 27
# Fields with only one supported value; another would change the function.
PLAIN: Final[Mapping[str, Any]] = {
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "norm_elementwise_affine": False,
    # Fields of diffusers' Transformer2DModel, the class of the first checkpoints.
    "attention_type": "default",
    "double_self_attention": False,
    "num_vector_embeds": None,
    "only_cross_attention": False,
    "use_linear_projection": False,
}


@dataclass(frozen=True)
class PatchConfig:
    """Fields of both configs, with diffusers' defaults."""

    IGNORED: ClassVar[tuple[str, ...]] = ("dropout", "norm_num_groups", "upcast_attention")
    FOLDER: ClassVar[str] = "transformer"

    sample_size: int = 32
    in_channels: int = 4
    out_channels: int | None = None
    num_layers: int = 28
    num_attention_heads: int = 16
    attention_head_dim: int = 72
    patch_size: int = 2
    num_embeds_ada_norm: int = 1000

    def __post_init__(self) -> None:
        if self.sample_size % self.patch_size or self.patch_size != 2**self.halvings:
            raise ConfigError(
                f"sample_size={self.sample_size} must be a multiple of patch_size={self.patch_size}, a power of two"
            )
        if self.width * (self.sample_size // self.patch_size) ** 2 > _LARGEST_TABLE:
            raise ConfigError(
                f"sample_size={self.sample_size}, patch_size={self.patch_size} and {self.width} channels make more "
                f"than {_LARGEST_TABLE:,} values of positions, which is absurd"
            )
        if self.width % 4:
            raise ConfigError(
                f"num_attention_heads={self.num_attention_heads} times attention_head_dim={self.attention_head_dim} "
                "must be a multiple of 4: a quarter of the channels has the sines of a row"
            )
        if self.predicted not in (self.in_channels, 2 * self.in_channels):
            raise ConfigError(
                f"out_channels={self.out_channels} must be in_channels={self.in_channels}, or twice as many for a "
                "model that also predicts a variance"
            )

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def predicted(self) -> int:
        """Channels of the output, including the variance."""
        return self.out_channels or self.in_channels

    @property
    def noise_channels(self) -> int:
        """Channels of the output without the variance."""
        return self.in_channels

    @property
    def text_channels(self) -> int:
        """Width of the text embeddings for cross-attention; 0 without text."""
        return 0

    @property
    def halvings(self) -> int:
        """Number of times that patches halve the side of a latent."""
        return self.patch_size.bit_length() - 1

    @property
    def scale(self) -> float:
        """Divisor of the positions 0, 1, 2, … of patches."""
        return 1.0
