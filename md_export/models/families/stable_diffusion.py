"""Stable Diffusion 1 and 2, and models pruned or distilled from them: UNet and ControlNet are diffusers' modules."""

from __future__ import annotations

from typing import Final

from torch import nn

from md_export.errors import UsageError
from md_export.models.config import ModelConfig
from md_export.models.controlnet import (
    DiffusersControlNetConfig,
    build_diffusers_controlnet,
    controlled_shapes,
)
from md_export.models.diffusers_unet import CLASS_NAME, DiffusersUNetConfig, build_diffusers_unet
from md_export.models.families.latent_diffusion import latent_diffusion
from md_export.models.graph import Form
from md_export.models.values import Shape


def _unet_config(config: ModelConfig) -> DiffusersUNetConfig:
    assert isinstance(config.unet, DiffusersUNetConfig)  # noqa: S101 (the family was chosen by it)
    return config.unet


def _controlnet(config: ModelConfig) -> nn.Module:
    if not isinstance(config.controlnet, DiffusersControlNetConfig):
        raise UsageError("this checkpoint has no ControlNet: put its config.json and weights into controlnet/")
    return build_diffusers_controlnet(config.controlnet)


def _skips(config: ModelConfig) -> tuple[Shape, ...]:
    return controlled_shapes(_unet_config(config), config.latent_shape)


STABLE_DIFFUSION: Final = latent_diffusion(
    Form(
        "sd15",
        unet=DiffusersUNetConfig,
        controlnet=DiffusersControlNetConfig,
        pipeline="StableDiffusionPipeline",
        unet_class=("diffusers", CLASS_NAME),
        libraries=("diffusers",),
        # As AutoencoderKL takes fields that its config leaves out: those of Stable Diffusion 1 do.
        vae={"latent_channels": 4, "scaling_factor": 0.18215},
    ),
    build_unet=lambda config: build_diffusers_unet(_unet_config(config)),
    build_controlnet=_controlnet,
    controlled_shapes=_skips,
)
