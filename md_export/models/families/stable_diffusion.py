"""Stable Diffusion 1 and 2, with diffusers' UNet and ControlNet."""

from __future__ import annotations

from typing import Final

from md_export.models.controlnet import DiffusersControlNetConfig, build_diffusers_controlnet, controlled_shapes
from md_export.models.diffusers_unet import CLASS_NAME, DiffusersUNetConfig, build_diffusers_unet
from md_export.models.families.latent_diffusion import CLASSES, controlnet_of, denoiser_of, latent_diffusion
from md_export.models.graph import Form

STABLE_DIFFUSION: Final = latent_diffusion(
    Form(
        "sd15",
        "Stable Diffusion 1 and 2",
        pipeline="StableDiffusionPipeline",
        classes={**CLASSES, "unet": ("diffusers", CLASS_NAME)},
        denoiser=DiffusersUNetConfig,
        controlnet=DiffusersControlNetConfig,
        libraries=("diffusers",),
        # AutoencoderKL's defaults for fields that configs of Stable Diffusion 1 leave out.
        vae={"latent_channels": 4, "scaling_factor": 0.18215},
    ),
    build_unet=lambda config: build_diffusers_unet(denoiser_of(config, DiffusersUNetConfig), config.embedded_guidance),
    build_controlnet=lambda config: build_diffusers_controlnet(controlnet_of(config, DiffusersControlNetConfig)),
    controlled=lambda config: controlled_shapes(denoiser_of(config, DiffusersUNetConfig), config.latent_shape),
)
