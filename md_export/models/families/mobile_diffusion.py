"""MobileDiffusion (Zhao et al., arXiv 2311.16567)."""

from __future__ import annotations

from typing import Final

from torch import nn

from md_export.errors import UsageError
from md_export.models.config import ModelConfig
from md_export.models.controlnet import ControlNetConfig, MDControlNet, skip_shapes
from md_export.models.families.latent_diffusion import latent_diffusion
from md_export.models.graph import Form
from md_export.models.unet import MDUNet, MDUNetConfig
from md_export.models.values import Shape


def _unet_config(config: ModelConfig) -> MDUNetConfig:
    assert isinstance(config.unet, MDUNetConfig)  # noqa: S101 (the family was chosen by it)
    return config.unet


def _controlnet(config: ModelConfig) -> nn.Module:
    if not isinstance(config.controlnet, ControlNetConfig):
        raise UsageError("this checkpoint has no ControlNet: put its config.json and weights into controlnet/")
    return MDControlNet(config.controlnet, _unet_config(config))


def _skips(config: ModelConfig) -> tuple[Shape, ...]:
    return skip_shapes(_unet_config(config), config.latent_shape)


MOBILE_DIFFUSION: Final = latent_diffusion(
    Form(
        "md",
        unet=MDUNetConfig,
        controlnet=ControlNetConfig,
        pipeline="MobileDiffusionPipeline",
        unet_class=("md_export", "MDUNet"),
    ),
    build_unet=lambda config: MDUNet(_unet_config(config)),
    build_controlnet=_controlnet,
    controlled_shapes=_skips,
)
