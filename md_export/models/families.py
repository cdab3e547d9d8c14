"""Model families: what their components are built of, how values flow between them, and how a checkpoint is recognized.

All families so far share the wiring of latent diffusion: prompt → text encoder → UNet → VAE decoder. A UNet that
in-paints takes a picture's latents and a mask after the noise; an adapter or a ControlNet may add residuals to its
maps. What differs between families is what their UNet and ControlNet are built of.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, TypeVar

from torch import nn

from md_export.errors import UsageError
from md_export.models import values
from md_export.models.adapter import T2IAdapter, residual_shapes
from md_export.models.config import ControlConfig, ModelConfig, UNetConfig
from md_export.models.controlnet import (
    ControlNetConfig,
    DiffusersControlNetConfig,
    MDControlNet,
    build_diffusers_controlnet,
    controlled_shapes,
    skip_shapes,
)
from md_export.models.diffusers_unet import CLASS_NAME, DiffusersUNetConfig, build_diffusers_unet
from md_export.models.graph import Component, Family, Form, Output, Port
from md_export.models.text_encoder import TextEncoder
from md_export.models.tiny_autoencoder import TinyConfig, TinyDecoder, TinyEncoder
from md_export.models.unet import MDUNet, MDUNetConfig
from md_export.models.vae import VAEDecoder, VAEEncoder
from md_export.models.values import Kind, Shape, kind

Build = Callable[[ModelConfig], nn.Module]
UNetT = TypeVar("UNetT", bound=UNetConfig)
ControlT = TypeVar("ControlT", bound=ControlConfig)
# Of a UNet that in-paints, with the mask and the picture's latents.
_OF_UNET = kind(4, lambda config: (1, config.unet.in_channels, *config.latent_shape[2:]))


def latent_diffusion(
    form: Form,
    build_unet: Build,
    build_controlnet: Build,
    controlled: Callable[[ModelConfig], tuple[Shape, ...]],
) -> Family:
    """Declare a family.

    ``controlled``: shapes of what its ControlNet adds, to each skip connection and, the last, to the innermost map.
    """
    residuals = Kind(4, lambda config: _residual_shapes(config, controlled), many=True)
    text_encoder = Component(
        "text_encoder",
        folder="text_encoder",
        build=lambda config: TextEncoder(config.text_encoder),
        inputs=(Port("input_ids", values.INPUT_IDS),),
        outputs=(Output("last_hidden_state", values.TEXT),),
        called="per prompt",
    )
    vae_encoder = Component(
        "vae_encoder",
        folder="vae",
        build=lambda config: _autoencoder(config, VAEEncoder, TinyEncoder),
        inputs=(Port("image", values.PICTURE),),
        outputs=(Output("latent_mean", values.LATENT),),
        key_prefixes=("encoder.", "quant_conv."),
        needed=lambda config: config.inpaints,
    )
    t2i_adapter = Component(
        "t2i_adapter",
        folder="t2i_adapter",
        build=_adapter,
        inputs=(Port("condition", values.CONDITION, batched=False),),
        outputs=(Output("residual_", residuals),),
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
        needed=lambda config: config.controlnet is not None,
    )
    unet = Component(
        "unet",
        folder="unet",
        build=build_unet,
        inputs=(
            Port("sample", values.SAMPLE, _OF_UNET, beside=(values.MASK, values.SHOWN)),
            Port("timestep", values.TIMESTEP, batched=False),
            Port("encoder_hidden_states", text_encoder["last_hidden_state"]),
            Port("residual_", t2i_adapter["residual_"].or_else(controlnet["residual_"]), when=values.CONDITION),
        ),
        outputs=(Output("out_sample", values.LATENT),),
        called="per step",
    )
    vae_decoder = Component(
        "vae_decoder",
        folder="vae",
        build=lambda config: _autoencoder(config, VAEDecoder, TinyDecoder),
        inputs=(Port("latent", values.LAST),),
        outputs=(Output("image", values.IMAGE),),
        key_prefixes=("decoder.", "post_quant_conv."),
    )
    return Family(
        form,
        components=(text_encoder, vae_encoder, t2i_adapter, controlnet, unet, vae_decoder),
        outside=(*values.GIVEN, *values.SAMPLER),
        denoised=unet["out_sample"],
        encoded=vae_encoder["latent_mean"],
        image=vae_decoder["image"],
    )


def unet_of(config: ModelConfig, own: type[UNetT]) -> UNetT:
    """Return the config of the UNet, which is the family's ``own``: the family was chosen by it."""
    assert isinstance(config.unet, own)  # noqa: S101
    return config.unet


def controlnet_of(config: ModelConfig, own: type[ControlT]) -> ControlT:
    """Return the config of the ControlNet; raises :class:`UsageError` where the checkpoint has none of the family's."""
    if not isinstance(config.controlnet, own):
        raise UsageError("this checkpoint has no ControlNet: put its config.json and weights into controlnet/")
    return config.controlnet


def _residual_shapes(config: ModelConfig, controlled: Callable[[ModelConfig], tuple[Shape, ...]]) -> tuple[Shape, ...]:
    """Shapes of what an adapter or a ControlNet adds to the UNet's maps; none where the checkpoint has neither."""
    if config.adapter is not None:
        return residual_shapes(config.adapter, config.latent_shape)
    return () if config.controlnet is None else controlled(config)


def _autoencoder(
    config: ModelConfig, kl: type[VAEDecoder | VAEEncoder], tiny: type[TinyDecoder | TinyEncoder]
) -> nn.Module:
    return tiny(config.vae) if isinstance(config.vae, TinyConfig) else kl(config.vae)


def _adapter(config: ModelConfig) -> nn.Module:
    if config.adapter is None:
        raise UsageError("this checkpoint has no adapter: put its config.json and weights into t2i_adapter/")
    return T2IAdapter(config.adapter)


MOBILE_DIFFUSION: Final = latent_diffusion(
    Form(
        "md",
        unet=MDUNetConfig,
        controlnet=ControlNetConfig,
        pipeline="MobileDiffusionPipeline",
        unet_class=("md_export", "MDUNet"),
    ),
    build_unet=lambda config: MDUNet(unet_of(config, MDUNetConfig)),
    build_controlnet=lambda config: MDControlNet(
        controlnet_of(config, ControlNetConfig), unet_of(config, MDUNetConfig)
    ),
    controlled=lambda config: skip_shapes(unet_of(config, MDUNetConfig), config.latent_shape),
)


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
    build_unet=lambda config: build_diffusers_unet(unet_of(config, DiffusersUNetConfig)),
    build_controlnet=lambda config: build_diffusers_controlnet(controlnet_of(config, DiffusersControlNetConfig)),
    controlled=lambda config: controlled_shapes(unet_of(config, DiffusersUNetConfig), config.latent_shape),
)


FAMILIES: Final = (MOBILE_DIFFUSION, STABLE_DIFFUSION)
# For golden cases and exports, which do not name their family: all families so far have the same wiring.
WIRING: Final = MOBILE_DIFFUSION

COMPONENTS: Final[Mapping[str, Component]] = {component.name: component for component in WIRING.required}


def component_of(config: ModelConfig, name: str) -> Component:
    """Return the row of a checkpoint's component; raises :class:`UsageError` for a name that its family lacks."""
    family = family_of(config)
    if name not in family.rows:
        known = ", ".join(row.name for row in family.required)
        raise UsageError(f"unknown component {name!r}; use one of {known}")
    return family.rows[name]


def family_of(config: ModelConfig) -> Family:
    """Return the family of a checkpoint, by its UNet."""
    (family,) = (family for family in FAMILIES if isinstance(config.unet, family.form.unet))
    return family


def family_by_class(name: str) -> Family:
    """Return the family of a checkpoint by the class that ``unet/config.json`` names; MobileDiffusion for any other."""
    return next((family for family in FAMILIES if family.form.unet_class[1] == name), MOBILE_DIFFUSION)
