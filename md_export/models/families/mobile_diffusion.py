"""MobileDiffusion (arXiv 2311.16567)."""

from __future__ import annotations

from typing import Final

from md_export.models.controlnet import ControlNetConfig, MDControlNet, skip_shapes
from md_export.models.families.latent_diffusion import controlnet_of, latent_diffusion, unet_of
from md_export.models.graph import Form
from md_export.models.unet import MDUNet, MDUNetConfig

MOBILE_DIFFUSION: Final = latent_diffusion(
    Form(
        "md",
        unet=MDUNetConfig,
        controlnet=ControlNetConfig,
        pipeline="MobileDiffusionPipeline",
        unet_class=("md_export", "MDUNet"),
        one_step=True,
    ),
    build_unet=lambda config: MDUNet(unet_of(config, MDUNetConfig)),
    build_controlnet=lambda config: MDControlNet(
        controlnet_of(config, ControlNetConfig), unet_of(config, MDUNetConfig)
    ),
    controlled=lambda config: skip_shapes(unet_of(config, MDUNetConfig), config.latent_shape),
)
