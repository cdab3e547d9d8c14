"""DiT (arXiv 2212.09748): a transformer on patches, conditioned on a class, with Stable Diffusion's VAE."""

from __future__ import annotations

from typing import Final

from torch import nn

from md_export.models import values
from md_export.models.config import ModelConfig
from md_export.models.dit import DiT, DiTConfig
from md_export.models.families.latent_diffusion import VAE_DECODER, VAE_ENCODER, denoiser_of, transformer
from md_export.models.graph import Family, Form, Port
from md_export.models.tokenizers import LABELS_FOLDER


def _transformer(config: ModelConfig) -> nn.Module:
    _, _, high, wide = config.latent_shape
    return DiT(denoiser_of(config, DiTConfig), (high, wide))


_TRANSFORMER: Final = transformer(_transformer, Port("class_labels", values.CLASS_LABELS))
DIT: Final = Family(
    Form(
        "dit",
        "DiT",
        pipeline="DiTPipeline",
        classes={
            "transformer": ("diffusers", "DiTTransformer2DModel"),
            "vae": ("diffusers", "AutoencoderKL"),
            "scheduler": ("diffusers", "DDIMScheduler"),
        },
        denoiser=DiTConfig,
        earlier_class="Transformer2DModel",
        marks={"norm_type": "ada_norm_zero"},
        vae={"latent_channels": 4, "scaling_factor": 0.18215},
    ),
    components=(VAE_ENCODER, _TRANSFORMER, VAE_DECODER),
    outside=(*values.GIVEN, values.CLASS_LABELS, *values.SAMPLER),
    denoised=_TRANSFORMER["out_sample"],
    encoded=VAE_ENCODER["latent_mean"],
    image=VAE_DECODER["image"],
    tokens={LABELS_FOLDER: values.CLASS_LABELS},
)
