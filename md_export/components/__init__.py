"""What a checkpoint is made of: the COMPONENTS table, and the configs that their shapes follow from."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from pydantic import TypeAdapter, ValidationError
from torch import nn

from md_export.components.schedule import ScheduleConfig
from md_export.components.text_encoder import TextEncoder
from md_export.components.unet import MDUNet, MDUNetConfig
from md_export.components.vae import VAEConfig
from md_export.components.vae_decoder import VAEDecoder
from md_export.components.vae_encoder import VAEEncoder
from md_export.errors import ConfigError, UsageError
from md_export.tensors import TensorSpec

ConfigT = TypeVar("ConfigT", MDUNetConfig, VAEConfig, ScheduleConfig)

# Sides of a latent: the UNet halves it twice. In one of 4 the innermost map would be a single pixel, and attention have
# one key; at the other end lies several times what any known model of this kind uses.
_STEP: Final = 4
_SMALLEST_LATENT: Final = 8
_LARGEST_LATENT: Final = 256

# diffusers' fields that say nothing our modules do not do anyway; any other value of those mapped
# to a value would change the function and is refused.
_IGNORED: Mapping[str, tuple[str, ...]] = {
    "unet": (),
    "vae": ("down_block_types", "up_block_types", "sample_size", "force_upcast"),
    "scheduler": ("skip_prk_steps",),
}
_REQUIRED: Mapping[str, Mapping[str, Any]] = {
    "unet": {},
    "vae": {"act_fn": "silu", "shift_factor": None, "latents_mean": None, "latents_std": None},
    "scheduler": {"trained_betas": None, "rescale_betas_zero_snr": False, "thresholding": False},
}


@dataclass(frozen=True)
class ModelConfig:
    """The configs of one checkpoint, parsed; ``text_encoder`` keeps transformers' own form."""

    text_encoder: Mapping[str, Any]
    unet: MDUNetConfig
    vae: VAEConfig
    schedule: ScheduleConfig = dataclasses.field(default_factory=ScheduleConfig)

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """``[1, C, h, w]`` of the latent."""
        size = self.unet.sample_size
        return (1, self.unet.in_channels, size, size)

    @property
    def image_size(self) -> int:
        """Side of the picture in pixels."""
        return self.unet.sample_size * self.vae.downscale

    def at(self, size: int) -> ModelConfig:
        """The same model for pictures of ``size`` pixels a side; no weight depends on it.

        Raises:
            UsageError: the UNet or the decoder cannot make such pictures.
        """
        if size == self.image_size:
            return self
        step, smallest, largest = (n * self.vae.downscale for n in (_STEP, _SMALLEST_LATENT, _LARGEST_LATENT))
        if size % step or not smallest <= size <= largest:
            near = min(max(round(size / step) * step, smallest), largest)
            raise UsageError(
                f"size {size}: a side must be a multiple of {step} pixels from {smallest} to {largest}, since the "
                f"decoder enlarges {self.vae.downscale} times and the UNet halves a latent twice; the nearest is {near}"
            )
        return dataclasses.replace(self, unet=dataclasses.replace(self.unet, sample_size=size // self.vae.downscale))

    @property
    def text_shape(self) -> tuple[int, int, int]:
        """``[1, L, hidden]`` of the text encoder's output."""
        length = int(self.text_encoder.get("max_position_embeddings", 77))
        return (1, length, int(self.text_encoder.get("hidden_size", 512)))

    def check(self) -> None:
        """Raise :class:`ConfigError` where the components do not fit each other."""
        if self.text_shape[2] != self.unet.cross_attention_dim:
            raise ConfigError(
                f"unet/config.json: cross_attention_dim={self.unet.cross_attention_dim}, but the text encoder's "
                f"hidden_size is {self.text_shape[2]}; they must be equal"
            )
        if self.unet.in_channels != self.vae.latent_channels:
            raise ConfigError(
                f"unet/config.json: in_channels={self.unet.in_channels}, but vae/config.json has "
                f"latent_channels={self.vae.latent_channels}; they must be equal"
            )


@dataclass(frozen=True)
class Component:
    """One exported part: its folder in the checkpoint, how it is built, its named inputs and outputs."""

    name: str
    folder: str
    build: Callable[[ModelConfig], nn.Module]
    inputs: Callable[[ModelConfig], tuple[TensorSpec, ...]]
    outputs: Callable[[ModelConfig], tuple[TensorSpec, ...]]
    key_prefixes: tuple[str, ...]


def parse_config(kind: type[ConfigT], folder: str, values: Mapping[str, Any]) -> ConfigT:
    """Turn ``folder/config.json`` into ``kind``; keys with a leading underscore are diffusers' own notes."""
    known = {field.name for field in dataclasses.fields(kind)}
    given = {k: v for k, v in values.items() if not k.startswith("_") and k not in _IGNORED[folder]}
    for key, required in _REQUIRED[folder].items():
        if given.pop(key, required) != required:
            raise ConfigError(f"{folder}/config.json: only {key}={required!r} is supported, not {values[key]!r}")
    unknown = sorted(set(given) - known)
    if unknown:
        raise ConfigError(
            f"{folder}/config.json: unknown field {', '.join(unknown)}; known fields: {', '.join(sorted(known))}"
        )
    try:
        # Through JSON: strict mode then takes arrays for tuples and integers for floats, and nothing else.
        return TypeAdapter(kind).validate_json(json.dumps(given), strict=True)
    except ConfigError as error:
        raise ConfigError(f"{folder}/config.json: {error}") from error
    except (ValidationError, TypeError, ValueError) as error:
        raise ConfigError(f"{folder}/config.json: {_first_finding(error)}") from error


def _first_finding(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}, not {first['input']!r}"


def _text(config: ModelConfig) -> TensorSpec:
    return TensorSpec("encoder_hidden_states", config.text_shape, "float32")


def _latent(config: ModelConfig, name: str) -> TensorSpec:
    return TensorSpec(name, config.latent_shape, "float32")


def _image(config: ModelConfig) -> TensorSpec:
    return TensorSpec("image", (1, config.vae.out_channels, config.image_size, config.image_size), "float32")


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
        build=lambda config: MDUNet(config.unet),
        inputs=lambda config: (
            _latent(config, "sample"),
            TensorSpec("timestep", (1,), "float32"),
            _text(config),
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
    outputs=lambda config: (_latent(config, "latent"),),
    key_prefixes=("encoder.", "quant_conv."),
)
