"""MobileDiffusion (Zhao et al., arXiv 2311.16567)."""

from __future__ import annotations

from typing import Final

from torch import nn

from md_export.errors import UsageError
from md_export.models.config import ModelConfig
from md_export.models.controlnet import MDControlNet, skip_shapes
from md_export.models.diffusers_controlnet import (
    DiffusersControlNetConfig,
    build_diffusers_controlnet,
    controlled_shapes,
)
from md_export.models.diffusers_unet import build_diffusers_unet
from md_export.models.families.latent_diffusion import latent_diffusion
from md_export.models.graph import Shape
from md_export.models.unet import MDUNet
from md_export.models.unet_config import MDUNetConfig


def _unet(config: ModelConfig) -> nn.Module:
    unet = config.unet
    return MDUNet(unet) if isinstance(unet, MDUNetConfig) else build_diffusers_unet(unet)


def _controlnet(config: ModelConfig) -> nn.Module:
    if isinstance(config.controlnet, DiffusersControlNetConfig):
        return build_diffusers_controlnet(config.controlnet)
    if config.controlnet is None or not isinstance(config.unet, MDUNetConfig):
        raise UsageError("this checkpoint has no ControlNet: put its config.json and weights into controlnet/")
    return MDControlNet(config.controlnet, config.unet)


def _skips(config: ModelConfig) -> tuple[Shape, ...]:
    unet = config.unet
    shapes = skip_shapes if isinstance(unet, MDUNetConfig) else controlled_shapes
    return shapes(unet, config.latent_shape)  # type: ignore[arg-type]


MOBILE_DIFFUSION: Final = latent_diffusion("MobileDiffusion", _unet, _controlnet, _skips)
