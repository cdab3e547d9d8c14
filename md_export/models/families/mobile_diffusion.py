"""Family of MobileDiffusion (arXiv 2311.16567)."""

from __future__ import annotations

from typing import Final

from md_export.models.controlnet import ControlNetConfig, MDControlNet, skip_shapes
from md_export.models.families.latent_diffusion import CLASSES, controlnet_of, denoiser_of, latent_diffusion
from md_export.models.graph import Form
from md_export.models.unet import MDUNet, MDUNetConfig

MOBILE_DIFFUSION: Final = latent_diffusion(
    Form(
        "md",
        "MobileDiffusion",
        pipeline="MobileDiffusionPipeline",
        classes={**CLASSES, "unet": ("md_export", "MDUNet")},
        denoiser=MDUNetConfig,
        controlnet=ControlNetConfig,
        one_step=True,
    ),
    build_unet=lambda config: MDUNet(denoiser_of(config, MDUNetConfig)),
    build_controlnet=lambda config: MDControlNet(
        controlnet_of(config, ControlNetConfig), denoiser_of(config, MDUNetConfig)
    ),
    controlled=lambda config: skip_shapes(denoiser_of(config, MDUNetConfig), config.latent_shape),
)
