"""Whether what takes a condition picture fits the UNet that it steers."""

from __future__ import annotations

from md_export.components.adapter import AdapterConfig
from md_export.components.controlnet import ControlNetConfig
from md_export.components.diffusers_controlnet import DiffusersControlNetConfig
from md_export.components.diffusers_unet import DiffusersUNetConfig
from md_export.components.unet_config import MDUNetConfig
from md_export.components.vae import VAEConfig
from md_export.errors import ConfigError

ControlConfig = ControlNetConfig | DiffusersControlNetConfig
UNetConfig = MDUNetConfig | DiffusersUNetConfig


def check_steering(
    unet: UNetConfig, vae: VAEConfig, adapter: AdapterConfig | None, controlnet: ControlConfig | None
) -> None:
    """Raise :class:`ConfigError` where an adapter or a ControlNet is for another UNet, or both are there."""
    if adapter is not None and controlnet is not None:
        raise ConfigError(
            "t2i_adapter/ and controlnet/ are both there, and only one can steer a model: remove the other"
        )
    if adapter is not None:
        _check_adapter(unet, vae, adapter)
    if controlnet is not None:
        _check_controlnet(unet, vae, controlnet)


def _check_adapter(unet: UNetConfig, vae: VAEConfig, adapter: AdapterConfig) -> None:
    _check("t2i_adapter", "channels", adapter.channels, "unet", "block_out_channels", unet.block_out_channels)
    _check("t2i_adapter", "downscale_factor", adapter.downscale_factor, "vae", "an enlargement of", vae.downscale)
    if isinstance(unet, DiffusersUNetConfig) and "DownBlock2D" in unet.down_block_types[:-1]:
        raise ConfigError(
            f"unet/config.json: down_block_types={unet.down_block_types}; adapters are read for UNets of which every "
            "level but the last has attention, as those of Stable Diffusion have"
        )


def _check_controlnet(unet: UNetConfig, vae: VAEConfig, controlnet: ControlConfig) -> None:
    widths = controlnet.conditioning_embedding_out_channels
    if 2 ** (len(widths) - 1) != vae.downscale:
        raise ConfigError(
            f"controlnet/config.json: conditioning_embedding_out_channels={widths} makes a condition "
            f"{2 ** (len(widths) - 1)} times smaller, but the VAE makes pictures {vae.downscale} times smaller; the "
            "ControlNet is for another model"
        )
    if unet.in_channels != vae.latent_channels:
        raise ConfigError(
            "controlnet/ beside a UNet that in-paints; ControlNets are read for UNets that take the noise alone"
        )
    if not isinstance(controlnet, DiffusersControlNetConfig):
        return
    for field in ("in_channels", "block_out_channels", "layers_per_block", "cross_attention_dim"):
        _check("controlnet", field, getattr(controlnet, field), "unet", field, getattr(unet, field))


def _check(folder: str, field: str, has: object, other: str, other_field: str, wanted: object) -> None:
    if has != wanted:
        raise ConfigError(
            f"{folder}/config.json: {field}={has}, but {other}/config.json has {other_field} {wanted}; they must be "
            f"equal, what is in {folder}/ is for another model"
        )
