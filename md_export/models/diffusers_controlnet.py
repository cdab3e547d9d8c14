"""Stable Diffusion's ControlNet: diffusers' module, built from a config whose fields are all known here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from torch import Tensor, nn

from md_export.errors import ConfigError, MissingExtraError
from md_export.models.controlnet import check_condition_encoder
from md_export.models.diffusers_unet import PLAIN, DiffusersUNetConfig
from md_export.system.quiet_imports import import_quietly

CONTROLNET_CLASS: Final = "ControlNetModel"
# Fields with only one supported value: those that a ControlNet shares with the UNet, and those that only it has.
PLAIN_CONTROLNET: Final[Mapping[str, Any]] = {
    **{
        name: PLAIN[name]
        for name in (
            "act_fn",
            "addition_embed_type",
            "addition_time_embed_dim",
            "class_embed_type",
            "downsample_padding",
            "encoder_hid_dim",
            "encoder_hid_dim_type",
            "mid_block_scale_factor",
            "num_attention_heads",
            "num_class_embeds",
            "only_cross_attention",
            "projection_class_embeddings_input_dim",
            "resnet_time_scale_shift",
        )
    },
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "controlnet_conditioning_channel_order": "rgb",
    "global_pool_conditions": False,
}


@dataclass(frozen=True)
class DiffusersControlNetConfig:
    """``controlnet/config.json`` of diffusers' ControlNetModel, with the same defaults."""

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
        # Check the shared fields with the UNet's config class: values that it refuses are wrong here too.
        shared = {field.name for field in dataclasses.fields(DiffusersUNetConfig)} & set(dataclasses.asdict(self))
        up = ("CrossAttnUpBlock2D",) * len(self.down_block_types)
        DiffusersUNetConfig(**{name: getattr(self, name) for name in shared}, up_block_types=up)


def build_diffusers_controlnet(config: DiffusersControlNetConfig) -> nn.Module:
    """Build the ControlNet; its parameters are named as in diffusers.

    ``(sample, timestep, encoder_hidden_states, condition [1, C, H, W])`` → one residual for each skip connection of the
    UNet and, last, one for its middle.

    Raises:
        MissingExtraError: diffusers is not installed.
    """
    try:
        library = import_quietly("diffusers.models.controlnets.controlnet")
    except ImportError as error:
        raise MissingExtraError(
            "Stable Diffusion's ControlNet is built by diffusers, which is not installed: pip install "
            "'md-export[diffusers]'"
        ) from error
    controlnet: nn.Module = library.ControlNetModel(**dataclasses.asdict(config))
    # diffusers returns a dataclass of a list and a tensor; the hook turns it into a tuple of tensors.
    controlnet.register_forward_hook(_residuals)
    return controlnet


def _residuals(controlnet: nn.Module, args: tuple[Any, ...], out: Any) -> tuple[Tensor, ...]:  # noqa: ARG001 (a hook's)
    return (*out.down_block_res_samples, out.mid_block_res_sample)


def controlled_shapes(unet: DiffusersUNetConfig, latent: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Return the residuals' shapes for a latent ``[1, C, h, w]``: each skip connection, then the UNet's middle."""
    height, width = latent[2:]
    if not isinstance(unet.layers_per_block, int):
        raise ConfigError("unet/config.json: layers_per_block differs by level; no ControlNet is made for such a UNet")
    maps = [(unet.block_out_channels[0], 0)]
    for level, channels in enumerate(unet.block_out_channels):
        maps += [(channels, level)] * unet.layers_per_block
        maps += [(channels, level + 1)] if level < unet.halvings else []
    maps.append((unet.block_out_channels[-1], unet.halvings))
    return tuple((1, channels, height >> times, width >> times) for channels, times in maps)
