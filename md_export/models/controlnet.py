"""ControlNets (Zhang et al., arXiv 2302.05543): copies of a UNet's down path that also read a condition picture and
return one residual for each skip connection and one for the innermost map.

For MobileDiffusion it is our module, with the parameter names of diffusers' ControlNetModel and, on the down path, of
the UNet. For Stable Diffusion it is diffusers' module, built from a config in which every field is checked.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Final

import torch.nn.functional as F
from torch import Tensor, nn

from md_export.errors import ConfigError
from md_export.models.diffusers_unet import PLAIN, DiffusersUNetConfig, from_diffusers
from md_export.models.unet import DownPath, MDUNetConfig

_MOST_HALVINGS: Final = 5


@dataclass(frozen=True)
class ControlNetConfig:
    """``controlnet/config.json`` for MobileDiffusion, with diffusers' fields; other sizes are in the UNet's config.

    ``conditioning_channels``: 1 for edges, depth or a sketch, 3 for a colour picture. The condition encoder halves the
    picture before each width except the first, down to the size of the latent.
    """

    IGNORED: ClassVar[tuple[str, ...]] = ()
    REQUIRED: ClassVar[Mapping[str, Any]] = {
        "controlnet_conditioning_channel_order": "rgb",
        "global_pool_conditions": False,
    }
    # No fields to compare: this ControlNet is built from the UNet's config.
    OF_UNET: ClassVar[tuple[str, ...]] = ()

    conditioning_channels: int = 3
    conditioning_embedding_out_channels: tuple[int, ...] = (16, 32, 96, 256)

    def __post_init__(self) -> None:
        check_condition_encoder(self.conditioning_channels, self.conditioning_embedding_out_channels)


def check_condition_encoder(channels: int, widths: tuple[int, ...]) -> None:
    """Raise :class:`ConfigError` for a number of channels other than 1 or 3, or for too many ``widths``."""
    if channels not in (1, 3):
        raise ConfigError(f"conditioning_channels={channels}: a condition picture has 1 or 3 channels")
    if len(widths) > _MOST_HALVINGS + 1:
        raise ConfigError(
            f"conditioning_embedding_out_channels has {len(widths)} entries; the limit is {_MOST_HALVINGS + 1}"
        )


class ConditionEncoder(nn.Module):
    """3×3 convolutions with swish; every second one has stride 2, and the last is initialized with zeros."""

    def __init__(self, channels: int, widths: tuple[int, ...], c_out: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList()
        for narrow, wide in pairwise(widths):
            self.blocks.append(nn.Conv2d(narrow, narrow, 3, padding=1))
            self.blocks.append(nn.Conv2d(narrow, wide, 3, padding=1, stride=2))
        self.conv_out = _zero(nn.Conv2d(widths[-1], c_out, 3, padding=1))

    def forward(self, condition: Tensor) -> Tensor:
        """``[1, channels, H, W]`` → ``[1, c_out, H/f, W/f]``."""
        x = F.silu(self.conv_in(condition))
        for block in self.blocks:
            x = F.silu(block(x))
        out: Tensor = self.conv_out(x)
        return out


class MDControlNet(DownPath):
    """ControlNet stored in ``controlnet/``; its outputs are the residuals of :class:`MDUNet`."""

    def __init__(self, config: ControlNetConfig, unet: MDUNetConfig) -> None:
        super().__init__(unet, unet.in_channels)
        widths = skip_widths(unet)
        self.controlnet_cond_embedding = ConditionEncoder(
            config.conditioning_channels, config.conditioning_embedding_out_channels, unet.block_out_channels[0]
        )
        self.controlnet_down_blocks = nn.ModuleList([_zero(nn.Conv2d(width, width, 1)) for width in widths])
        inner = unet.block_out_channels[-1]
        self.controlnet_mid_block = _zero(nn.Conv2d(inner, inner, 1))

    def forward(
        self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, condition: Tensor
    ) -> tuple[Tensor, ...]:
        """Return the residuals for the UNet's skip connections and, last, for its innermost map.

        Args:
            sample, timestep, encoder_hidden_states: inputs of the UNet, batch B.
            condition: ``[1, conditioning_channels, H, W]`` in [0, 1], or with batch B.
        """
        emb = self.time_embedding(timestep)
        x = self.conv_in(sample) + self.controlnet_cond_embedding(condition)
        inner, skips = self.descend(x, emb, encoder_hidden_states)
        added = [block(skip) for block, skip in zip(self.controlnet_down_blocks, skips, strict=True)]
        return (*added, self.controlnet_mid_block(inner))


def _zero(conv: nn.Conv2d) -> nn.Conv2d:
    """Set a convolution to zeros, so that training starts with the unchanged UNet, and return it."""
    assert conv.bias is not None  # noqa: S101 (made here)
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(conv.bias)
    return conv


def skip_widths(unet: MDUNetConfig) -> tuple[int, ...]:
    """Return the channels of the UNet's skip connections, the outermost first."""
    c1, c2, c3 = unet.block_out_channels
    outer = (c1, c1, c1, c2)
    return outer if unet.unified_inner else (*outer, c2, c3, c3)


def skip_shapes(unet: MDUNetConfig, latent: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Return the residuals' shapes for a latent ``[1, C, h, w]``: for each skip connection, then the innermost map."""
    height, width = latent[2:]
    halvings = (0, 0, 1, 1) if unet.unified_inner else (0, 0, 1, 1, 2, 2, 2)
    pairs = [*zip(skip_widths(unet), halvings, strict=True), (unet.block_out_channels[-1], unet.halvings)]
    return tuple((1, channels, height >> times, width >> times) for channels, times in pairs)


# Fields with only one supported value: those of the UNet, and those that only a ControlNet has.
PLAIN_CONTROLNET: Final[Mapping[str, Any]] = {
    **PLAIN,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "controlnet_conditioning_channel_order": "rgb",
    "global_pool_conditions": False,
}


@dataclass(frozen=True)
class DiffusersControlNetConfig:
    """``controlnet/config.json`` of diffusers' ControlNetModel, with diffusers' defaults."""

    IGNORED: ClassVar[tuple[str, ...]] = ("addition_embed_type_num_heads",)
    REQUIRED: ClassVar[Mapping[str, Any]] = PLAIN_CONTROLNET
    # Fields that must have the UNet's values.
    OF_UNET: ClassVar[tuple[str, ...]] = (
        "in_channels",
        "block_out_channels",
        "layers_per_block",
        "cross_attention_dim",
    )

    in_channels: int = 4
    conditioning_channels: int = 3
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    down_block_types: tuple[str, ...] = (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D")
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    cross_attention_dim: int = 1280
    transformer_layers_per_block: int | tuple[int, ...] = 1
    attention_head_dim: int | tuple[int, ...] = 8
    use_linear_projection: bool = False
    upcast_attention: bool | None = None
    conditioning_embedding_out_channels: tuple[int, ...] = (16, 32, 96, 256)

    def __post_init__(self) -> None:
        check_condition_encoder(self.conditioning_channels, self.conditioning_embedding_out_channels)
        # The UNet's config class checks the shared fields.
        shared = {field.name for field in dataclasses.fields(DiffusersUNetConfig)} & set(dataclasses.asdict(self))
        up = ("CrossAttnUpBlock2D",) * len(self.down_block_types)
        DiffusersUNetConfig(**{name: getattr(self, name) for name in shared}, up_block_types=up)


def build_diffusers_controlnet(config: DiffusersControlNetConfig) -> nn.Module:
    """Return the ControlNet, with diffusers' parameter names.

    ``(sample, timestep, encoder_hidden_states, condition [1, C, H, W])`` → one residual for each skip connection of the
    UNet and, last, one for its middle block.

    Raises:
        MissingExtraError: diffusers is not installed.
    """
    library = from_diffusers("diffusers.models.controlnets.controlnet", "Stable Diffusion's ControlNet is built")
    controlnet: nn.Module = library.ControlNetModel(**dataclasses.asdict(config))
    # diffusers returns a dataclass of a list and a tensor; the hook turns it into a tuple of tensors.
    controlnet.register_forward_hook(_residuals)
    return controlnet


def _residuals(controlnet: nn.Module, args: tuple[Any, ...], out: Any) -> tuple[Tensor, ...]:  # noqa: ARG001 (a hook's)
    return (*out.down_block_res_samples, out.mid_block_res_sample)


def controlled_shapes(unet: DiffusersUNetConfig, latent: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Return the residuals' shapes for a latent ``[1, C, h, w]``: for each skip connection, then the middle block."""
    height, width = latent[2:]
    if not isinstance(unet.layers_per_block, int):
        raise ConfigError("unet/config.json: layers_per_block differs by level; ControlNets do not support such a UNet")
    maps = [(unet.block_out_channels[0], 0)]
    for level, channels in enumerate(unet.block_out_channels):
        maps += [(channels, level)] * unet.layers_per_block
        maps += [(channels, level + 1)] if level < unet.halvings else []
    maps.append((unet.block_out_channels[-1], unet.halvings))
    return tuple((1, channels, height >> times, width >> times) for channels, times in maps)
