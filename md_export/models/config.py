"""Configs of one checkpoint, and shapes and checks that need several of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Protocol

from md_export.errors import ConfigError, UsageError
from md_export.models.adapter import AdapterConfig
from md_export.models.controlnet import ControlNetConfig, DiffusersControlNetConfig
from md_export.models.diffusers_unet import DiffusersUNetConfig
from md_export.models.sampling.schedule import ScheduleConfig
from md_export.models.t5_encoder import T5Config
from md_export.models.tiny_autoencoder import TinyConfig
from md_export.models.unet import MDUNetConfig
from md_export.models.vae import VAEConfig
from md_export.spec.names import Method
from md_export.spec.sampler import EMBEDDED_GUIDANCE
from md_export.spec.variant import TRAINED, Size, Variant

ControlConfig = ControlNetConfig | DiffusersControlNetConfig
AutoencoderConfig = VAEConfig | TinyConfig


class Config(Protocol):
    """A dataclass of the fields of a ``config.json`` that change the computed function.

    Attributes:
        IGNORED: fields without influence on our modules.
        REQUIRED: fields with only one supported value; another would change the function.
    """

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]
    IGNORED: ClassVar[tuple[str, ...]]
    REQUIRED: ClassVar[Mapping[str, Any]]


class DenoiserConfig(Config, Protocol):
    """Config fields that a pipeline needs of the denoiser, which is in ``FOLDER`` of a checkpoint."""

    FOLDER: ClassVar[str]

    @property
    def sample_size(self) -> int:
        """Side of the latent in latent pixels."""

    @property
    def in_channels(self) -> int:
        """Channels of the input."""

    @property
    def noise_channels(self) -> int:
        """Channels of the output."""

    @property
    def text_channels(self) -> int:
        """Width of the text embeddings for cross-attention; 0 without text."""

    @property
    def halvings(self) -> int:
        """Number of times that the denoiser halves the side of a latent."""


def _check(folder: str, field: str, has: object, other: str, other_field: str, wanted: object) -> None:
    if has != wanted:
        raise ConfigError(
            f"{folder}/config.json: {field}={has}, but {other}/config.json has {other_field} {wanted}; they must be "
            f"equal, so {folder}/ is from another model"
        )


# Smallest side of the innermost map: with a single pixel, attention would have one key.
_SMALLEST_MAP: Final = 2
# transformers' default of num_hidden_layers.
_CLIP_LAYERS: Final = 12
# Largest side of a latent: several times that of any known model of this kind.
_LARGEST_LATENT: Final = 256


@dataclass(frozen=True)
class ModelConfig:
    """Parsed configs of one checkpoint; ``text_encoder`` has the fields of transformers' config.

    ``denoiser``: config of the UNet or transformer that each step calls.
    ``text_encoder``: empty for families without one. ``text_encoder_2``: for families with two. ``t5``: for families
    with T5's text encoder.
    ``adapter``, ``controlnet``: for a UNet with a condition picture; at most one of the two is set.
    ``method``: sampling method of its scheduler; None if no sampler here has it.
    ``variant``: variant that :meth:`at` applied.
    ``zeros_for_empty``: unconditional text embeddings are zeros, not those of the empty prompt.
    """

    text_encoder: Mapping[str, Any]
    denoiser: DenoiserConfig
    vae: AutoencoderConfig
    schedule: ScheduleConfig = dataclasses.field(default_factory=ScheduleConfig)
    adapter: AdapterConfig | None = None
    controlnet: ControlConfig | None = None
    method: Method | None = "ddim"
    variant: Variant = TRAINED
    text_encoder_2: Mapping[str, Any] | None = None
    zeros_for_empty: bool = False
    t5: T5Config | None = None

    @property
    def condition_shape(self) -> tuple[int, ...] | None:
        """Shape ``[1, C, H, W]`` of the condition picture; None without adapter and ControlNet."""
        channels = 0 if self.controlnet is None else self.controlnet.conditioning_channels
        channels = channels if self.adapter is None else self.adapter.in_channels
        return (1, channels, *self.picture_shape) if channels else None

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """Shape ``[1, C, h, w]`` of the latent."""
        side, downscale = self.denoiser.sample_size, self.vae.downscale
        width, height = (pixels // downscale for pixels in self.variant.sides or (side * downscale, side * downscale))
        return (1, self.vae.latent_channels, height, width)

    @property
    def inpaints(self) -> bool:
        """Whether the UNet's input has the noise, a mask and a picture's latents: ``2·C + 1`` channels."""
        return self.denoiser.in_channels == 2 * self.vae.latent_channels + 1

    @property
    def edits(self) -> bool:
        """Whether the UNet's input has the noise and a picture's latents: ``2·C`` channels (InstructPix2Pix)."""
        return self.denoiser.in_channels == 2 * self.vae.latent_channels

    @property
    def embedded_guidance(self) -> float | None:
        """Guidance scale that the UNet embeds (LCM), as in diffusers' pipelines; None if it embeds none."""
        if not isinstance(self.denoiser, DiffusersUNetConfig) or self.denoiser.time_cond_proj_dim is None:
            return None
        return EMBEDDED_GUIDANCE if self.variant.guidance is None else max(self.variant.guidance, 1.0)

    @property
    def takes_picture(self) -> bool:
        """Whether the UNet's input has a picture's latents, so that every picture needs the VAE encoder."""
        return self.inpaints or self.edits

    @property
    def picture_shape(self) -> tuple[int, int]:
        """Height and width of the picture in pixels."""
        _, _, height, width = self.latent_shape
        return height * self.vae.downscale, width * self.vae.downscale

    @property
    def image_size(self) -> Size:
        """Side of the picture in pixels, or width and height if they differ."""
        height, width = self.picture_shape
        return width if width == height else (width, height)

    def at(self, variant: Variant) -> ModelConfig:
        """Return the configs with the changes of a variant, which do not affect weights.

        Raises:
            UsageError: the denoiser or the decoder does not support the size, the schedule does not have the timestep,
                or the text encoder has too few layers.
        """
        last = self.schedule.last_timestep
        if variant.timestep is not None and not 0 <= variant.timestep <= last:
            raise UsageError(f"timestep {variant.timestep!s:.20}: the scheduler's config has timesteps 0 to {last}")
        if variant.clip_skip and not self.text_encoder:
            raise UsageError("clip_skip is for models with a CLIP text encoder, and this one has none: leave it out")
        layers = int(self.text_encoder.get("num_hidden_layers", _CLIP_LAYERS))
        if not variant.clip_skip < layers:
            raise UsageError(f"clip_skip {variant.clip_skip}: the text encoder has {layers} layers; leave out fewer")
        for side in variant.sides or ():
            self._check_side(side)
        if variant.sides == (self.denoiser.sample_size * self.vae.downscale,) * 2:
            variant = dataclasses.replace(variant, size=None)
        if self.embedded_guidance is None:
            variant = dataclasses.replace(variant, guidance=None)
        skipped = {"num_hidden_layers": layers - variant.clip_skip} if variant.clip_skip else {}
        return dataclasses.replace(self, text_encoder={**self.text_encoder, **skipped}, variant=variant)

    def _check_side(self, side: int) -> None:
        """Raise UsageError if the denoiser or the decoder does not support pictures with this side."""
        halvings = self.denoiser.halvings
        sides = (2**halvings, _SMALLEST_MAP * 2**halvings, _LARGEST_LATENT)
        step, smallest, largest = (cells * self.vae.downscale for cells in sides)
        if side % step or not smallest <= side <= largest:
            near = min(max(round(side / step) * step, smallest), largest)
            raise UsageError(
                f"size {side}: a side must be a multiple of {step} pixels from {smallest} to {largest}, because the "
                f"decoder enlarges {self.vae.downscale} times and the {self.denoiser.FOLDER} needs latents with a side "
                f"that is a multiple of {2**halvings}; the nearest is {near}"
            )

    @property
    def text_shape(self) -> tuple[int, int, int]:
        """Shape ``[1, L, hidden]`` of the text encoder's output."""
        if self.t5 is not None:
            return (1, self.t5.length, self.t5.d_model)
        length = int(self.text_encoder.get("max_position_embeddings", 77))
        return (1, length, int(self.text_encoder.get("hidden_size", 512)))

    @property
    def text_encoders(self) -> tuple[tuple[str, str, Mapping[str, Any]], ...]:
        """Tokenizer folder, folder and config of each text encoder."""
        both = (
            ("tokenizer", "text_encoder", self.text_encoder),
            ("tokenizer_2", "text_encoder_2", self.text_encoder_2),
            ("tokenizer", "text_encoder", None if self.t5 is None else dataclasses.asdict(self.t5)),
        )
        return tuple((tokenizer, encoder, config) for tokenizer, encoder, config in both if config)

    @property
    def text_width(self) -> int:
        """Width of the text embeddings for the denoiser: the text encoders' outputs, concatenated."""
        if not self.text_encoders:
            return 0
        return self.text_shape[2] + int((self.text_encoder_2 or {}).get("hidden_size", 0))

    def check(self) -> None:
        """Raise :class:`ConfigError` if the configs contradict each other, or both adapter and ControlNet exist."""
        file = f"{self.denoiser.FOLDER}/config.json"
        if self.text_width != self.denoiser.text_channels:
            names = ("cross_attention_dim", "hidden_size") if self.t5 is None else ("caption_channels", "d_model")
            raise ConfigError(
                f"{file}: {names[0]}={self.denoiser.text_channels}, but the text encoder's {names[1]} is "
                f"{self.text_width}; they must be equal"
            )
        channels = self.vae.latent_channels
        if self.denoiser.in_channels not in (channels, 2 * channels, 2 * channels + 1):
            raise ConfigError(
                f"{file}: in_channels={self.denoiser.in_channels}, but vae/config.json has "
                f"latent_channels={channels}; they must be equal, or {2 * channels} for editing, or "
                f"{2 * channels + 1} for in-painting"
            )
        if self.denoiser.noise_channels != channels:
            raise ConfigError(
                f"{file}: out_channels={self.denoiser.noise_channels}, but vae/config.json has "
                f"latent_channels={channels}; they must be equal"
            )
        if self.adapter is not None and self.controlnet is not None:
            raise ConfigError("t2i_adapter/ and controlnet/ both exist, and a model can use only one: remove the other")
        if self.adapter is not None:
            self._check_adapter(self.adapter)
        if self.controlnet is not None:
            self._check_controlnet(self.controlnet)

    def _check_adapter(self, adapter: AdapterConfig) -> None:
        unet, vae = self.denoiser, self.vae
        # Only families with one of these UNets have an adapter.
        assert isinstance(unet, MDUNetConfig | DiffusersUNetConfig)  # noqa: S101
        _check("t2i_adapter", "channels", adapter.channels, "unet", "block_out_channels", unet.block_out_channels)
        _check("t2i_adapter", "downscale_factor", adapter.downscale_factor, "vae", "an enlargement of", vae.downscale)
        if unet.why_no_adapter:
            raise ConfigError(f"unet/config.json: {unet.why_no_adapter}")

    def _check_controlnet(self, controlnet: ControlConfig) -> None:
        widths, downscale = controlnet.conditioning_embedding_out_channels, self.vae.downscale
        if 2 ** (len(widths) - 1) != downscale:
            raise ConfigError(
                f"controlnet/config.json: conditioning_embedding_out_channels={widths} makes the condition "
                f"{2 ** (len(widths) - 1)} times smaller, but the VAE makes pictures {downscale} times smaller; the "
                "ControlNet is from another model"
            )
        if self.denoiser.in_channels != self.vae.latent_channels:
            raise ConfigError("controlnet/ with an in-painting or editing UNet is not supported; remove it")
        for field in controlnet.OF_UNET:
            _check("controlnet", field, getattr(controlnet, field), "unet", field, getattr(self.denoiser, field))
