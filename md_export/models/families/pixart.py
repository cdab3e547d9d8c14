"""PixArt-α and PixArt-Σ (arXiv 2310.00426, 2403.04692): T5's encoder, a transformer on patches, Stable Diffusion's VAE.

T5 and the transformer mask the padding of a prompt.
"""

from __future__ import annotations

from typing import Final

from torch import nn

from md_export.models import values
from md_export.models.config import ModelConfig
from md_export.models.families.latent_diffusion import VAE_DECODER, VAE_ENCODER, denoiser_of, transformer
from md_export.models.graph import Component, Family, Form, Output, Port
from md_export.models.pixart import PixArt, PixArtConfig
from md_export.models.t5_encoder import T5_CLASS, T5Encoder


def _text_encoder(config: ModelConfig) -> nn.Module:
    assert config.t5 is not None  # noqa: S101 (the family's folders have one)
    return T5Encoder(config.t5)


def _transformer(config: ModelConfig) -> nn.Module:
    _, _, high, wide = config.latent_shape
    return PixArt(denoiser_of(config, PixArtConfig), (high, wide), config.vae.downscale)


_TEXT_ENCODER: Final = Component(
    "text_encoder",
    folder="text_encoder",
    build=_text_encoder,
    inputs=(Port("input_ids", values.INPUT_IDS), Port("attention_mask", values.ATTENTION_MASK)),
    outputs=(Output("last_hidden_state", values.TEXT),),
    called="per prompt",
)
_TRANSFORMER: Final = transformer(
    _transformer,
    Port("encoder_hidden_states", _TEXT_ENCODER["last_hidden_state"]),
    Port("encoder_attention_mask", values.ATTENTION_MASK),
)
PIXART: Final = Family(
    Form(
        "pixart",
        "PixArt-α and -Σ",
        pipeline="PixArtAlphaPipeline",
        classes={
            "text_encoder": ("transformers", T5_CLASS),
            "tokenizer": ("transformers", "T5Tokenizer"),
            "transformer": ("diffusers", "PixArtTransformer2DModel"),
            "vae": ("diffusers", "AutoencoderKL"),
            "scheduler": ("diffusers", "DPMSolverMultistepScheduler"),
        },
        denoiser=PixArtConfig,
        earlier_class="Transformer2DModel",
        marks={"norm_type": "ada_norm_single"},
        vae={"latent_channels": 4, "scaling_factor": 0.18215},
    ),
    components=(_TEXT_ENCODER, VAE_ENCODER, _TRANSFORMER, VAE_DECODER),
    outside=(*values.GIVEN, values.ATTENTION_MASK, *values.SAMPLER),
    denoised=_TRANSFORMER["out_sample"],
    encoded=VAE_ENCODER["latent_mean"],
    image=VAE_DECODER["image"],
    tokens={"tokenizer": values.INPUT_IDS},
)
