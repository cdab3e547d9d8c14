"""What a checkpoint is made of: the COMPONENTS table."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn

from md_export.errors import UsageError
from md_export.models.adapter import RESIDUAL, T2IAdapter, residual_shapes
from md_export.models.config import ModelConfig as ModelConfig
from md_export.models.config import UNetConfig as UNetConfig
from md_export.models.controlnet import MDControlNet, skip_shapes
from md_export.models.diffusers_controlnet import (
    DiffusersControlNetConfig,
    build_diffusers_controlnet,
    controlled_shapes,
)
from md_export.models.diffusers_unet import build_diffusers_unet
from md_export.models.text_encoder import TextEncoder
from md_export.models.unet import MDUNet
from md_export.models.unet_config import MDUNetConfig
from md_export.models.vae import VAEDecoder, VAEEncoder
from md_export.spec.names import ADAPTER, CONTROLNET
from md_export.spec.tensors import TensorSpec


@dataclass(frozen=True)
class Component:
    """One exported part: its folder in the checkpoint, how it is built, its named inputs and outputs."""

    name: str
    folder: str
    build: Callable[[ModelConfig], nn.Module]
    inputs: Callable[[ModelConfig], tuple[TensorSpec, ...]]
    outputs: Callable[[ModelConfig], tuple[TensorSpec, ...]]
    key_prefixes: tuple[str, ...]


def build_unet(config: UNetConfig) -> nn.Module:
    """MobileDiffusion's UNet or Stable Diffusion's; MissingExtraError where the latter's library is not installed."""
    return MDUNet(config) if isinstance(config, MDUNetConfig) else build_diffusers_unet(config)


def _text(config: ModelConfig) -> TensorSpec:
    return TensorSpec("encoder_hidden_states", config.text_shape, "float32")


def _latent(config: ModelConfig, name: str) -> TensorSpec:
    return TensorSpec(name, config.latent_shape, "float32")


def _sample(config: ModelConfig) -> TensorSpec:
    shape = (1, config.unet.in_channels, *config.latent_shape[2:])
    return TensorSpec("sample", shape, "float32")


def _image(config: ModelConfig) -> TensorSpec:
    return TensorSpec("image", (1, config.vae.out_channels, config.image_size, config.image_size), "float32")


def _residuals(config: ModelConfig) -> tuple[TensorSpec, ...]:
    """What an adapter or a ControlNet gives and the UNet takes; none where the checkpoint has neither."""
    return tuple(TensorSpec(f"{RESIDUAL}{place}", shape, "float32") for place, shape in enumerate(_added(config)))


def _added(config: ModelConfig) -> tuple[tuple[int, ...], ...]:
    if config.adapter is not None:
        return residual_shapes(config.adapter, config.latent_shape)
    if config.controlnet is None:
        return ()
    if isinstance(config.unet, MDUNetConfig):
        return skip_shapes(config.unet, config.latent_shape)
    return controlled_shapes(config.unet, config.latent_shape)


def _condition(config: ModelConfig, component: str) -> TensorSpec:
    if config.condition_shape is None or config.steering != component:
        raise UsageError(f"this checkpoint has no {component}: put its config.json and weights into {component}/")
    return TensorSpec("condition", config.condition_shape, "float32")


def _build_adapter(config: ModelConfig) -> nn.Module:
    if config.adapter is None:
        raise UsageError("this checkpoint has no adapter: put its config.json and weights into t2i_adapter/")
    return T2IAdapter(config.adapter)


def _build_controlnet(config: ModelConfig) -> nn.Module:
    if isinstance(config.controlnet, DiffusersControlNetConfig):
        return build_diffusers_controlnet(config.controlnet)
    if config.controlnet is None or not isinstance(config.unet, MDUNetConfig):
        raise UsageError("this checkpoint has no ControlNet: put its config.json and weights into controlnet/")
    return MDControlNet(config.controlnet, config.unet)


def _unet_output(config: ModelConfig) -> TensorSpec:
    return dataclasses.replace(
        _latent(config, "out_sample"), shape=(1, config.unet.out_channels, *config.latent_shape[2:])
    )


COMPONENTS: Mapping[str, Component] = {
    "text_encoder": Component(
        "text_encoder",
        folder="text_encoder",
        build=lambda config: TextEncoder(config.text_encoder),
        inputs=lambda config: (TensorSpec("input_ids", config.text_shape[:2], "int32"),),
        outputs=lambda config: (dataclasses.replace(_text(config), name="last_hidden_state"),),
        key_prefixes=("",),
    ),
    "unet": Component(
        "unet",
        folder="unet",
        build=lambda config: build_unet(config.unet),
        inputs=lambda config: (
            _sample(config),
            TensorSpec("timestep", (1,), "float32"),
            _text(config),
            *_residuals(config),
        ),
        outputs=lambda config: (_unet_output(config),),
        key_prefixes=("",),
    ),
    "vae_decoder": Component(
        "vae_decoder",
        folder="vae",
        build=lambda config: VAEDecoder(config.vae),
        inputs=lambda config: (_latent(config, "latent"),),
        outputs=lambda config: (_image(config),),
        key_prefixes=("decoder.", "post_quant_conv."),
    ),
}
# The encoder is trained and tested here, but no target exports it yet.
ENCODER = Component(
    "vae_encoder",
    folder="vae",
    build=lambda config: VAEEncoder(config.vae),
    inputs=lambda config: (_image(config),),
    outputs=lambda config: (_latent(config, "latent_mean"),),
    key_prefixes=("encoder.", "quant_conv."),
)
# Those that a checkpoint may have: see Checkpoint.components.
OPTIONAL: Mapping[str, Component] = {
    "t2i_adapter": Component(
        "t2i_adapter",
        folder="t2i_adapter",
        build=_build_adapter,
        inputs=lambda config: (_condition(config, ADAPTER),),
        outputs=_residuals,
        key_prefixes=("",),
    ),
    "controlnet": Component(
        "controlnet",
        folder="controlnet",
        build=_build_controlnet,
        inputs=lambda config: (
            _latent(config, "sample"),
            TensorSpec("timestep", (1,), "float32"),
            _text(config),
            _condition(config, CONTROLNET),
        ),
        outputs=_residuals,
        key_prefixes=("",),
    ),
    ENCODER.name: ENCODER,
}
ALL_COMPONENTS: Mapping[str, Component] = {**COMPONENTS, **OPTIONAL}
