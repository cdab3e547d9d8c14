"""Model shapes that convert in seconds: one like the nano checkpoint, one that differs from it in every field."""

from __future__ import annotations

import dataclasses

import numpy as np

from md_export.models.config import ModelConfig
from md_export.models.diffusers_unet import DiffusersUNetConfig, XLUNetConfig
from md_export.models.dit import DiTConfig
from md_export.models.families import component_of
from md_export.models.pixart import PixArtConfig
from md_export.models.sampling.schedule import ScheduleConfig
from md_export.models.t5_encoder import T5Config
from md_export.models.unet import MDUNetConfig
from md_export.models.vae import VAEConfig
from md_export.spec.tensors import Array

VOCABULARY = 100
NANO = ModelConfig(
    text_encoder={
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 77,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    denoiser=MDUNetConfig(
        sample_size=8,
        block_out_channels=(32, 64, 96),
        cross_attention_dim=32,
        attention_head_dim=16,
        norm_num_groups=8,
        time_embed_dim=128,
        down_layers=1,
        up_layers=1,
    ),
    vae=VAEConfig(
        block_out_channels=(16, 24, 48, 64),
        norm_num_groups=8,
        decoder_layers_per_block=1,
        mid_block_add_attention=False,
    ),
)
OTHER = ModelConfig(
    text_encoder={**NANO.text_encoder, "hidden_size": 48, "num_attention_heads": 3},
    denoiser=MDUNetConfig(
        sample_size=16,
        block_out_channels=(24, 40, 80),
        cross_attention_dim=48,
        attention_head_dim=20,
        norm_num_groups=4,
        time_embed_dim=96,
        ff_expansion=2,
        ff_activation="gelu",
        attention_kind="relu",
        attention_relu_scale=1.5,
        down_layers=1,
        up_layers=1,
        sep_conv_time="hidden",
        unified_inner=False,
    ),
    vae=VAEConfig(block_out_channels=(16, 24, 32), norm_num_groups=4, decoder_layers_per_block=1),
)
CONFIGS = {"nano": NANO, "other": OTHER}
# Stable Diffusion 1's: one level without and one with attention, attention in the middle of UNet and VAE.
STABLE = ModelConfig(
    text_encoder={
        "vocab_size": 520,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 77,
        "bos_token_id": 518,
        "eos_token_id": 519,
    },
    denoiser=DiffusersUNetConfig(
        sample_size=16,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=64,
        attention_head_dim=4,
    ),
    vae=VAEConfig(
        latent_channels=4,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        scaling_factor=0.18215,
    ),
)
# Stable Diffusion XL's: the levels of its UNet have none, one and two layers of attention.
XL = dataclasses.replace(
    STABLE,
    text_encoder={**STABLE.text_encoder, "num_hidden_layers": 3},
    text_encoder_2={
        **STABLE.text_encoder,
        "hidden_size": 96,
        "intermediate_size": 192,
        "projection_dim": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "hidden_act": "gelu",
        "pad_token_id": 0,
    },
    denoiser=XLUNetConfig(
        sample_size=16,
        block_out_channels=(32, 32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=160,
        transformer_layers_per_block=(1, 1, 2),
        attention_head_dim=(2, 2, 4),
        use_linear_projection=True,
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=88,
    ),
    vae=dataclasses.replace(STABLE.vae, scaling_factor=0.13025),
    method="euler",
    zeros_for_empty=True,
)

# The same for exports, whose time follows the number of nodes: two levels, one layer of attention each.
XL_SHORT = dataclasses.replace(
    XL,
    denoiser=dataclasses.replace(
        XL.denoiser,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1),
        attention_head_dim=(2, 4),
    ),
)

_LINEAR = ScheduleConfig(beta_start=0.0001, beta_end=0.02, beta_schedule="linear", steps_offset=0)
# Its weights are more than the constant of all distances.
_T5 = T5Config(vocab_size=128, d_model=64, d_kv=16, d_ff=256, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu")
# PixArt-α's with the embedding of sizes that its large ones have, PixArt-Σ's, DiT's.
PIXART = ModelConfig(
    text_encoder={},
    denoiser=PixArtConfig(
        sample_size=8,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=24,
        cross_attention_dim=48,
        caption_channels=64,
        use_additional_conditions=True,
    ),
    vae=STABLE.vae,
    schedule=dataclasses.replace(_LINEAR, timestep_spacing="linspace"),
    method="dpmpp_2m",
    t5=_T5,
)
SIGMA = dataclasses.replace(
    PIXART,
    denoiser=dataclasses.replace(PIXART.denoiser, use_additional_conditions=False, interpolation_scale=2),
    t5=dataclasses.replace(_T5, length=300),
)
DIT = ModelConfig(
    text_encoder={},
    denoiser=DiTConfig(
        sample_size=8,
        out_channels=8,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=24,
    ),
    vae=STABLE.vae,
    schedule=dataclasses.replace(_LINEAR, set_alpha_to_one=True),
)


def random_inputs(component: str, config: ModelConfig, seed: int) -> dict[str, Array]:
    """Token ids, the last timestep, and standard normal values for everything else."""
    generator = np.random.default_rng(seed)
    arrays: dict[str, Array] = {}
    for spec in component_of(config, component).input_specs(config):
        if spec.dtype == "int32":
            arrays[spec.name] = generator.integers(0, VOCABULARY, spec.shape, dtype=np.int32)
        elif spec.name == "timestep":
            arrays[spec.name] = np.full(spec.shape, 999, np.float32)
        else:
            arrays[spec.name] = generator.standard_normal(spec.shape, dtype=np.float32)
    return arrays
