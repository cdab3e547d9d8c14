"""What a checkpoint is made of: the COMPONENTS table, and the configs that their shapes follow from."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from pydantic import TypeAdapter, ValidationError
from torch import nn

from md_export.components.adapter import RESIDUAL, AdapterConfig, T2IAdapter, residual_shapes
from md_export.components.diffusers_unet import PLAIN, DiffusersUNetConfig, build_diffusers_unet
from md_export.components.schedule import OTHER_SAMPLERS, ScheduleConfig
from md_export.components.text_encoder import TextEncoder
from md_export.components.unet import MDUNet, MDUNetConfig
from md_export.components.vae import VAEConfig
from md_export.components.vae_decoder import VAEDecoder
from md_export.components.vae_encoder import VAEEncoder
from md_export.errors import ConfigError, UsageError
from md_export.tensors import TensorSpec

ConfigT = TypeVar("ConfigT", MDUNetConfig, DiffusersUNetConfig, VAEConfig, ScheduleConfig, AdapterConfig)
UNetConfig = MDUNetConfig | DiffusersUNetConfig

# Side of the innermost map: of a single pixel, attention would have one key.
_SMALLEST_MAP: Final = 2
# Side of a latent, several times what any known model of this kind uses.
_LARGEST_LATENT: Final = 256

# diffusers' fields that say nothing our modules do not do anyway; any other value of those mapped
# to a value would change the function and is refused.
_IGNORED: Mapping[type, tuple[str, ...]] = {
    MDUNetConfig: (),
    DiffusersUNetConfig: ("dropout", "addition_embed_type_num_heads"),
    AdapterConfig: (),
    VAEConfig: ("down_block_types", "up_block_types", "sample_size", "force_upcast"),
    ScheduleConfig: OTHER_SAMPLERS,
}
_REQUIRED: Mapping[type, Mapping[str, Any]] = {
    MDUNetConfig: {},
    DiffusersUNetConfig: PLAIN,
    AdapterConfig: {"adapter_type": "full_adapter"},
    VAEConfig: {"act_fn": "silu", "shift_factor": None, "latents_mean": None, "latents_std": None},
    ScheduleConfig: {
        "trained_betas": None,
        "rescale_betas_zero_snr": False,
        "thresholding": False,
        "use_flow_sigmas": False,
    },
}


@dataclass(frozen=True)
class ModelConfig:
    """The configs of one checkpoint, parsed; ``text_encoder`` keeps transformers' own form.

    ``adapter``: of a checkpoint whose UNet is steered by a condition picture.
    """

    text_encoder: Mapping[str, Any]
    unet: UNetConfig
    vae: VAEConfig
    schedule: ScheduleConfig = dataclasses.field(default_factory=ScheduleConfig)
    adapter: AdapterConfig | None = None

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """``[1, C, h, w]`` of the latent."""
        size = self.unet.sample_size
        return (1, self.vae.latent_channels, size, size)

    @property
    def inpaints(self) -> bool:
        """Whether the UNet takes mask and a picture's latents after the noise: ``2·C + 1`` channels."""
        return self.unet.in_channels == 2 * self.vae.latent_channels + 1

    @property
    def libraries(self) -> tuple[str, ...]:
        """Distributions beside torch and transformers that compute golden cases."""
        return () if isinstance(self.unet, MDUNetConfig) else ("diffusers",)

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
        halvings = self.unet.halvings
        sides = (2**halvings, _SMALLEST_MAP * 2**halvings, _LARGEST_LATENT)
        step, smallest, largest = (side * self.vae.downscale for side in sides)
        if size % step or not smallest <= size <= largest:
            near = min(max(round(size / step) * step, smallest), largest)
            raise UsageError(
                f"size {size}: a side must be a multiple of {step} pixels from {smallest} to {largest}, since the "
                f"decoder enlarges {self.vae.downscale} times and the UNet halves a latent {halvings} times; "
                f"the nearest is {near}"
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
        channels = self.vae.latent_channels
        if self.unet.in_channels not in (channels, 2 * channels + 1):
            raise ConfigError(
                f"unet/config.json: in_channels={self.unet.in_channels}, but vae/config.json has "
                f"latent_channels={channels}; they must be equal, or {2 * channels + 1} for in-painting"
            )
        if self.unet.out_channels != channels:
            raise ConfigError(
                f"unet/config.json: out_channels={self.unet.out_channels}, but vae/config.json has "
                f"latent_channels={channels}; they must be equal"
            )
        if self.adapter is not None:
            self._check_adapter(self.adapter)

    def _check_adapter(self, adapter: AdapterConfig) -> None:
        if not isinstance(self.unet, MDUNetConfig):
            raise ConfigError("t2i_adapter/ beside a UNet of diffusers; adapters are for MobileDiffusion's UNet so far")
        for field, has, wanted, where in (
            ("channels", adapter.channels, self.unet.block_out_channels, "unet/config.json has block_out_channels"),
            ("downscale_factor", adapter.downscale_factor, self.vae.downscale, "the decoder enlarges by"),
        ):
            if has != wanted:
                raise ConfigError(
                    f"t2i_adapter/config.json: {field}={has}, but {where} {wanted}; they must be equal, the adapter is "
                    "for another model"
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
    given = {k: v for k, v in values.items() if not k.startswith("_") and k not in _IGNORED[kind]}
    for key, required in _REQUIRED[kind].items():
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
    """What an adapter gives and the UNet takes; none where the checkpoint has no adapter."""
    shapes = () if config.adapter is None else residual_shapes(config.adapter, config.latent_shape)
    return tuple(TensorSpec(f"{RESIDUAL}{level}", shape, "float32") for level, shape in enumerate(shapes))


def _condition(config: ModelConfig) -> TensorSpec:
    return TensorSpec("condition", (1, _adapter(config).in_channels, config.image_size, config.image_size), "float32")


def _adapter(config: ModelConfig) -> AdapterConfig:
    if config.adapter is None:
        raise UsageError("this checkpoint has no adapter: put its config.json and weights into t2i_adapter/")
    return config.adapter


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
        build=lambda config: T2IAdapter(_adapter(config)),
        inputs=lambda config: (_condition(config),),
        outputs=_residuals,
        key_prefixes=("",),
    ),
    ENCODER.name: ENCODER,
}
ALL_COMPONENTS: Mapping[str, Component] = {**COMPONENTS, **OPTIONAL}
