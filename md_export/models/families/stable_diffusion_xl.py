"""Stable Diffusion XL (arXiv 2307.01952) and the models distilled from it: Turbo, Lightning, SSD-1B.

The outputs of its two text encoders are concatenated along the channels for the UNet. The second one's pooled vector
and six numbers for the picture's size are added to the time embedding.
"""

from __future__ import annotations

from typing import Final

from torch import nn

from md_export.errors import ConfigError
from md_export.models import values
from md_export.models.config import ModelConfig
from md_export.models.diffusers_unet import CLASS_NAME, XLUNetConfig, build_diffusers_unet
from md_export.models.families.latent_diffusion import (
    CLASSES,
    OF_UNET,
    SHOWN_BESIDE,
    VAE_DECODER,
    VAE_ENCODER,
    denoiser_of,
)
from md_export.models.graph import Component, Family, Form, Output, Port
from md_export.models.text_encoder import TextEncoder, is_unused, layers_of
from md_export.models.values import TIME_IDS, kind

_BIG_G: Final = "text_encoder_2"
_WIDTH_OF_BIG_G: Final = 1280


def _second(config: ModelConfig, field: str) -> int:
    return int((config.text_encoder_2 or {}).get(field, _WIDTH_OF_BIG_G))


def _unet(config: ModelConfig) -> nn.Module:
    unet, pooled = denoiser_of(config, XLUNetConfig), _second(config, "projection_dim")
    wanted = pooled + TIME_IDS.kind.shapes(config)[0][1] * unet.addition_time_embed_dim
    if unet.projection_class_embeddings_input_dim != wanted:
        raise ConfigError(
            f"unet/config.json: projection_class_embeddings_input_dim={unet.projection_class_embeddings_input_dim}, "
            f"but {_BIG_G}/config.json has projection_dim {pooled}, and six numbers of addition_time_embed_dim="
            f"{unet.addition_time_embed_dim} follow it: {wanted}; {_BIG_G}/ is from another model"
        )
    return build_diffusers_unet(unet, config.embedded_guidance)


_INPUT_IDS_2: Final = values.Value("given", "input_ids_2", values.IDS, "per prompt")
_TEXT_2: Final = kind(3, lambda config: (*config.text_shape[:2], _second(config, "hidden_size")))
_JOINED: Final = kind(3, lambda config: (*config.text_shape[:2], config.text_width))
_POOLED: Final = kind(2, lambda config: (1, _second(config, "projection_dim")))

_TEXT_ENCODER: Final = Component(
    "text_encoder",
    folder="text_encoder",
    build=lambda config: TextEncoder(config.text_encoder, "penultimate"),
    unused=lambda config, name: is_unused(
        name, layers_of(config.text_encoder, "penultimate"), ("text_projection.", "final_layer_norm.")
    ),
    inputs=(Port("input_ids", values.INPUT_IDS),),
    outputs=(Output("hidden_states", values.TEXT),),
    called="per prompt",
)
_TEXT_ENCODER_2: Final = Component(
    "text_encoder_2",
    folder=_BIG_G,
    build=lambda config: TextEncoder(
        config.text_encoder_2 or {}, "penultimate_and_pooled", _BIG_G, config.variant.clip_skip
    ),
    unused=lambda config, name: is_unused(name, layers_of(config.text_encoder_2 or {}, "penultimate_and_pooled")),
    inputs=(Port("input_ids", _INPUT_IDS_2),),
    outputs=(Output("hidden_states", _TEXT_2), Output("text_embeds", _POOLED)),
    called="per prompt",
)
_UNET: Final = Component(
    "unet",
    folder="unet",
    build=_unet,
    inputs=(
        Port("sample", values.SAMPLE, OF_UNET, beside=SHOWN_BESIDE),
        Port("timestep", values.TIMESTEP, batched=False),
        Port(
            "encoder_hidden_states",
            _TEXT_ENCODER["hidden_states"],
            _JOINED,
            beside=((_TEXT_ENCODER_2["hidden_states"],),),
            axis=2,
            times=values.PROMPTED,
        ),
        Port("text_embeds", _TEXT_ENCODER_2["text_embeds"], times=values.PROMPTED),
        Port("time_ids", TIME_IDS),
    ),
    outputs=(Output("out_sample", values.LATENT),),
    called="per step",
)

STABLE_DIFFUSION_XL: Final = Family(
    Form(
        "sdxl",
        "Stable Diffusion XL",
        pipeline="StableDiffusionXLPipeline",
        classes={
            **CLASSES,
            "text_encoder_2": ("transformers", "CLIPTextModelWithProjection"),
            "tokenizer_2": ("transformers", "CLIPTokenizer"),
            "unet": ("diffusers", CLASS_NAME),
            "scheduler": ("diffusers", "EulerDiscreteScheduler"),
        },
        denoiser=XLUNetConfig,
        marks={"addition_embed_type": "text_time"},
        libraries=("diffusers",),
        vae={"latent_channels": 4, "scaling_factor": 0.18215},
        zeros_for_empty=True,
    ),
    components=(_TEXT_ENCODER, _TEXT_ENCODER_2, VAE_ENCODER, _UNET, VAE_DECODER),
    outside=(*values.GIVEN, _INPUT_IDS_2, values.PROMPTED, TIME_IDS, *values.SAMPLER),
    denoised=_UNET["out_sample"],
    encoded=VAE_ENCODER["latent_mean"],
    image=VAE_DECODER["image"],
    tokens={"tokenizer": values.INPUT_IDS, "tokenizer_2": _INPUT_IDS_2},
)
