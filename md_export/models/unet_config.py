"""``unet/config.json`` of MobileDiffusion: figure 2 of the paper leaves the wiring open, the fields here span it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from md_export.errors import ConfigError
from md_export.models.layers import ACTIVATIONS, ATTENTION_KINDS, SEP_CONV_TIME


@dataclass(frozen=True)
class MDUNetConfig:
    """``unet/config.json``; every field may be left out there. Channels are counts, sizes are latent pixels."""

    IGNORED: ClassVar[tuple[str, ...]] = ()
    REQUIRED: ClassVar[Mapping[str, Any]] = {}
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
        _one_of("ff_activation", self.ff_activation, ACTIVATIONS)
        _one_of("attention_kind", self.attention_kind, ATTENTION_KINDS)
        _one_of("sep_conv_time", self.sep_conv_time, SEP_CONV_TIME)
        _one_of("sep_conv_expansion_of", self.sep_conv_expansion_of, ("in", "out"))
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
    def halvings(self) -> int:
        """How often a latent is halved on its way down."""
        return 2


def _one_of(field: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{field}={value!r} is unknown; use one of {', '.join(allowed)}")
