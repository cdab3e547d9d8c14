"""Model graph of latent diffusion, shared by all families: prompt → text encoder → UNet → VAE decoder.

An in-painting UNet gets a mask and a picture's latents in addition to the noise; an adapter or a ControlNet may add
residuals to its maps. Families differ in the modules of their UNet and ControlNet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, TypeVar

from torch import nn

from md_export.errors import UsageError
from md_export.models import values
from md_export.models.adapter import T2IAdapter, residual_shapes
from md_export.models.config import ControlConfig, DenoiserConfig, ModelConfig
from md_export.models.graph import Component, Family, Form, Output, Port
from md_export.models.text_encoder import TextEncoder, is_unused, layers_of
from md_export.models.tiny_autoencoder import TinyConfig, TinyDecoder, TinyEncoder
from md_export.models.vae import VAEDecoder, VAEEncoder
from md_export.models.values import Kind, Shape, kind

Build = Callable[[ModelConfig], nn.Module]
DenoiserT = TypeVar("DenoiserT", bound=DenoiserConfig)
ControlT = TypeVar("ControlT", bound=ControlConfig)
CLASSES: Final[Mapping[str, tuple[str, str]]] = {
    "text_encoder": ("transformers", "CLIPTextModel"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
    "vae": ("diffusers", "AutoencoderKL"),
    "scheduler": ("diffusers", "DDIMScheduler"),
}
# Input of the UNet: the noise, with mask and picture latents for in-painting, or picture latents for editing.
OF_UNET = kind(4, lambda config: (1, config.denoiser.in_channels, *config.latent_shape[2:]))
# Values that are concatenated to the noise, for in-painting and for editing.
SHOWN_BESIDE: Final = ((values.MASK, values.SHOWN), (values.EDITED,))


def _autoencoder(
    config: ModelConfig, kl: type[VAEDecoder | VAEEncoder], tiny: type[TinyDecoder | TinyEncoder]
) -> nn.Module:
    return tiny(config.vae) if isinstance(config.vae, TinyConfig) else kl(config.vae)


VAE_ENCODER: Final = Component(
    "vae_encoder",
    folder="vae",
    build=lambda config: _autoencoder(config, VAEEncoder, TinyEncoder),
    inputs=(Port("image", values.PICTURE),),
    outputs=(Output("latent_mean", values.LATENT),),
    key_prefixes=("encoder.", "quant_conv."),
    optional=True,
    needed=lambda config: config.takes_picture,
)
VAE_DECODER: Final = Component(
    "vae_decoder",
    folder="vae",
    build=lambda config: _autoencoder(config, VAEDecoder, TinyDecoder),
    inputs=(Port("latent", values.LAST),),
    outputs=(Output("image", values.IMAGE),),
    key_prefixes=("decoder.", "post_quant_conv."),
)


def transformer(build: Build, *conditions: Port) -> Component:
    """Return the row of a transformer on patches of the latent; ``conditions``: inputs besides sample and timestep."""
    return Component(
        "transformer",
        folder="transformer",
        build=build,
        inputs=(Port("sample", values.SAMPLE), Port("timestep", values.TIMESTEP, batched=False), *conditions),
        outputs=(Output("out_sample", values.LATENT),),
        called="per step",
    )


def latent_diffusion(
    form: Form,
    build_unet: Build,
    build_controlnet: Build,
    controlled: Callable[[ModelConfig], tuple[Shape, ...]],
) -> Family:
    """Return a family.

    ``controlled``: shapes of its ControlNet's residuals: for each skip connection, then for the innermost map.
    """
    residuals = Kind(4, lambda config: _residual_shapes(config, controlled), many=True)
    text_encoder = Component(
        "text_encoder",
        folder="text_encoder",
        build=lambda config: TextEncoder(config.text_encoder),
        unused=lambda config, name: is_unused(name, layers_of(config.text_encoder, "last"), ("text_projection.",)),
        inputs=(Port("input_ids", values.INPUT_IDS),),
        outputs=(Output("last_hidden_state", values.TEXT),),
        called="per prompt",
    )
    t2i_adapter = Component(
        "t2i_adapter",
        folder="t2i_adapter",
        build=_adapter,
        inputs=(Port("condition", values.CONDITION, batched=False),),
        outputs=(Output("residual_", residuals),),
        optional=True,
        needed=lambda config: config.adapter is not None,
    )
    controlnet = Component(
        "controlnet",
        folder="controlnet",
        build=build_controlnet,
        inputs=(
            Port("sample", values.SAMPLE),
            Port("timestep", values.TIMESTEP, batched=False),
            Port("encoder_hidden_states", text_encoder["last_hidden_state"]),
            Port("condition", values.CONDITION, batched=False),
        ),
        outputs=(Output("residual_", residuals),),
        called="per step",
        optional=True,
        needed=lambda config: config.controlnet is not None,
    )
    unet = Component(
        "unet",
        folder="unet",
        build=build_unet,
        inputs=(
            Port("sample", values.SAMPLE, OF_UNET, beside=SHOWN_BESIDE),
            Port("timestep", values.TIMESTEP, batched=False),
            Port("encoder_hidden_states", text_encoder["last_hidden_state"]),
            Port("residual_", t2i_adapter["residual_"].or_else(controlnet["residual_"]), when=values.CONDITION),
        ),
        outputs=(Output("out_sample", values.LATENT),),
        called="per step",
    )
    return Family(
        form,
        components=(text_encoder, VAE_ENCODER, t2i_adapter, controlnet, unet, VAE_DECODER),
        outside=(*values.GIVEN, *values.SAMPLER),
        denoised=unet["out_sample"],
        encoded=VAE_ENCODER["latent_mean"],
        image=VAE_DECODER["image"],
        tokens={"tokenizer": values.INPUT_IDS},
    )


def denoiser_of(config: ModelConfig, own: type[DenoiserT]) -> DenoiserT:
    """Return the denoiser's config as type ``own``, which it must have, because the family was chosen by it."""
    assert isinstance(config.denoiser, own)  # noqa: S101
    return config.denoiser


def controlnet_of(config: ModelConfig, own: type[ControlT]) -> ControlT:
    """Return the ControlNet's config; raise :class:`UsageError` if the checkpoint has none of type ``own``."""
    if not isinstance(config.controlnet, own):
        raise UsageError("this checkpoint has no ControlNet: put its config.json and weights into controlnet/")
    return config.controlnet


def _residual_shapes(config: ModelConfig, controlled: Callable[[ModelConfig], tuple[Shape, ...]]) -> tuple[Shape, ...]:
    """Return the shapes of an adapter's or ControlNet's residuals; empty if the checkpoint has neither."""
    if config.adapter is not None:
        return residual_shapes(config.adapter, config.latent_shape)
    return () if config.controlnet is None else controlled(config)


def _adapter(config: ModelConfig) -> nn.Module:
    if config.adapter is None:
        raise UsageError("this checkpoint has no adapter: put its config.json and weights into t2i_adapter/")
    return T2IAdapter(config.adapter)
