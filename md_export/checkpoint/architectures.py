"""Named architectures: configs that can be inspected and initialized without a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from md_export.errors import UsageError
from md_export.models.config import ModelConfig
from md_export.models.diffusers_unet import DiffusersUNetConfig
from md_export.models.unet_config import MDUNetConfig
from md_export.models.vae import VAEConfig

# openai/clip-vit-large-patch14, the text model.
CLIP_VIT_L_14: Final[Mapping[str, object]] = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "projection_dim": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "pad_token_id": 49407,
}
# 128·128·256·256 with two ResNet blocks a level and no attention is the paper's 9.8 M lite decoder;
# the scaling factor of its 8-channel latent is not published, 1 leaves it as it is.
LITE_VAE: Final = VAEConfig(
    latent_channels=8,
    block_out_channels=(128, 256, 512, 512),
    layers_per_block=2,
    decoder_block_out_channels=(128, 128, 256, 256),
    decoder_layers_per_block=2,
    mid_block_add_attention=False,
    scaling_factor=1.0,
)


def _md() -> ModelConfig:
    """MobileDiffusion (table 6), 512×512 pictures: UNet 386 M, whole model 520 M parameters."""
    return ModelConfig(text_encoder=CLIP_VIT_L_14, unet=MDUNetConfig(), vae=LITE_VAE)


def _md_lite() -> ModelConfig:
    """MD-Lite: innermost width 896, two transformer layers a block in Up-3."""
    unet = MDUNetConfig(block_out_channels=(320, 640, 896), up_layers=2)
    return replace(_md(), unet=unet)


def _sd15() -> ModelConfig:
    """Stable Diffusion 1.5, and 1.4: UNet 860 M, whole model 1,032 M parameters without the VAE's encoder."""
    vae = VAEConfig(latent_channels=4, block_out_channels=(128, 256, 512, 512), scaling_factor=0.18215)
    return ModelConfig(text_encoder=CLIP_VIT_L_14, unet=DiffusersUNetConfig(cross_attention_dim=768), vae=vae)


def _nano() -> ModelConfig:
    """The checkpoint that ships with this package."""
    from md_export.checkpoint import read_config
    from md_export.spec.shipped_files import nano_checkpoint

    return read_config(nano_checkpoint())


ARCHS: Final[Mapping[str, Callable[[], ModelConfig]]] = {"md": _md, "md-lite": _md_lite, "sd15": _sd15, "nano": _nano}


def arch_config(name: str) -> ModelConfig:
    """Return the configs of a named architecture; raises :class:`UsageError` for an unknown name."""
    if name not in ARCHS:
        raise UsageError(f"unknown architecture {name!r}; use one of {', '.join(ARCHS)}")
    return ARCHS[name]()
