"""Stable Diffusion's UNet: diffusers' module, built from a config in which every field is checked.

Supported are Stable Diffusion 1, 2 and XL and the models pruned or distilled from them. For other features of
diffusers' class (class labels, other blocks, norms or kernels), the error names the field that requests them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Final, cast

import torch
from torch import Tensor, nn

from md_export.errors import ConfigError, MissingExtraError
from md_export.system.vendors import import_quietly

CLASS_NAME: Final = "UNet2DConditionModel"
_DOWN_BLOCKS: Final = ("CrossAttnDownBlock2D", "DownBlock2D")
_UP_BLOCKS: Final = ("CrossAttnUpBlock2D", "UpBlock2D")
_MID_BLOCK: Final = "UNetMidBlock2DCrossAttn"
_MID_BLOCKS: Final = (_MID_BLOCK, "UNetMidBlock2D", None)
_RANK_OF_TEXT: Final = 3
# Smallest width of an embedding of guidance: two sines and two cosines.
_SMALLEST_EMBEDDING: Final = 4
_PER_LEVEL: Final = (
    "down_block_types",
    "up_block_types",
    "layers_per_block",
    "transformer_layers_per_block",
    "attention_head_dim",
)
# Fields with only one supported value; another would change the function.
PLAIN: Final[Mapping[str, Any]] = {
    **dict.fromkeys(
        (
            "addition_embed_type",
            "addition_time_embed_dim",
            "class_embed_type",
            "cross_attention_norm",
            "encoder_hid_dim",
            "encoder_hid_dim_type",
            "mid_block_only_cross_attention",
            "num_attention_heads",
            "num_class_embeds",
            "projection_class_embeddings_input_dim",
            "reverse_transformer_layers_per_block",
            "time_cond_proj_dim",
            "time_embedding_act_fn",
            "time_embedding_dim",
            "timestep_post_act",
        )
    ),
    "act_fn": "silu",
    "attention_type": "default",
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "mid_block_scale_factor": 1,
    "only_cross_attention": False,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "time_embedding_type": "positional",
}
# Field of UNets that were distilled to embed the guidance scale (LCM).
_OF_LCM: Final = "time_cond_proj_dim"
_OF_XL: Final = (
    "addition_embed_type",
    "addition_time_embed_dim",
    "projection_class_embeddings_input_dim",
    "reverse_transformer_layers_per_block",
)


@dataclass(frozen=True)
class DiffusersUNetConfig:
    """``unet/config.json`` of diffusers' UNet2DConditionModel, with diffusers' defaults.

    ``attention_head_dim`` is the number of heads, despite its name (diffusers' issue 2011). ``mid_block_type`` may be
    None in a pruned UNet.
    """

    IGNORED: ClassVar[tuple[str, ...]] = ("dropout", "addition_embed_type_num_heads")
    REQUIRED: ClassVar[Mapping[str, Any]] = {name: PLAIN[name] for name in PLAIN if name != _OF_LCM}
    FOLDER: ClassVar[str] = "unet"

    sample_size: int = 64
    in_channels: int = 4
    out_channels: int = 4
    center_input_sample: bool = False
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    down_block_types: tuple[str, ...] = (*_DOWN_BLOCKS[:1] * 3, "DownBlock2D")
    mid_block_type: str | None = _MID_BLOCK
    up_block_types: tuple[str, ...] = ("UpBlock2D", *_UP_BLOCKS[:1] * 3)
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int | tuple[int, ...] = 2
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    cross_attention_dim: int = 1280
    transformer_layers_per_block: int | tuple[int | tuple[int, ...], ...] = 1
    attention_head_dim: int | tuple[int, ...] = 8
    use_linear_projection: bool = False
    upcast_attention: bool | None = None
    time_cond_proj_dim: int | None = None

    def __post_init__(self) -> None:
        levels = len(self.block_out_channels)
        for field in _PER_LEVEL:
            if len(_per_level(getattr(self, field), levels)) != levels:
                raise ConfigError(f"{field} must have {levels} entries, as block_out_channels has")
        _all_of("down_block_types", self.down_block_types, _DOWN_BLOCKS)
        _all_of("up_block_types", self.up_block_types, _UP_BLOCKS)
        if self.mid_block_type not in _MID_BLOCKS:
            raise ConfigError(f"mid_block_type={self.mid_block_type!r} is unknown; use one of {_MID_BLOCKS}")
        for channels, heads in zip(self.block_out_channels, _per_level(self.attention_head_dim, levels), strict=True):
            if channels % self.norm_num_groups:
                raise ConfigError(f"norm_num_groups={self.norm_num_groups} does not divide {channels} channels")
            if channels % heads:
                raise ConfigError(
                    f"attention_head_dim={heads}, the number of heads, does not divide {channels} channels"
                )
        if self.time_cond_proj_dim is not None and self.time_cond_proj_dim < _SMALLEST_EMBEDDING:
            raise ConfigError(f"time_cond_proj_dim={self.time_cond_proj_dim} is below {_SMALLEST_EMBEDDING}")
        if self.sample_size % 2**self.halvings:
            raise ConfigError(
                f"sample_size={self.sample_size} must be a multiple of {2**self.halvings}: the UNet halves it "
                f"{self.halvings} times"
            )

    @property
    def why_no_adapter(self) -> str:
        """Reason why this UNet does not support an adapter; empty if it does."""
        if "DownBlock2D" not in self.down_block_types[:-1]:
            return ""
        return (
            f"down_block_types={self.down_block_types}; adapters need a UNet with attention in every level except the "
            "last, as in Stable Diffusion"
        )

    @property
    def noise_channels(self) -> int:
        """Channels of the output."""
        return self.out_channels

    @property
    def text_channels(self) -> int:
        """Width of the text embeddings for cross-attention."""
        return self.cross_attention_dim

    @property
    def halvings(self) -> int:
        """Number of times that the down path halves the side of a latent."""
        return len(self.block_out_channels) - 1


@dataclass(frozen=True)
class XLUNetConfig(DiffusersUNetConfig):
    """``unet/config.json`` of Stable Diffusion XL, with pooled text and picture size added to the time embedding.

    ``transformer_layers_per_block`` may differ within a level; the up blocks then have a separate field.
    """

    REQUIRED: ClassVar[Mapping[str, Any]] = {name: PLAIN[name] for name in PLAIN if name not in (*_OF_XL, _OF_LCM)}

    addition_embed_type: str = "text_time"
    addition_time_embed_dim: int = 256
    projection_class_embeddings_input_dim: int = 2816
    reverse_transformer_layers_per_block: tuple[int | tuple[int, ...], ...] | None = None


def _per_level(value: Any, levels: int) -> tuple[Any, ...]:
    """Return one value per level; a single value applies to all levels."""
    return tuple(value) if isinstance(value, (tuple, list)) else (value,) * levels


def _all_of(field: str, values: tuple[str, ...], allowed: tuple[str, ...]) -> None:
    for value in values:
        if value not in allowed:
            raise ConfigError(f"{field}: {value!r:.80} is not supported; use {' or '.join(allowed)}")


def from_diffusers(module: str, what: str) -> Any:
    """Return a module of diffusers; raise :class:`MissingExtraError` if it is missing, with ``what`` needs it."""
    try:
        return import_quietly(module, "diffusers")
    except (ImportError, MissingExtraError) as error:
        raise MissingExtraError(
            f"{what} by diffusers, which is not installed: pip install 'md-export[diffusers]'"
        ) from error


def build_diffusers_unet(config: DiffusersUNetConfig, guidance: float | None = None) -> nn.Module:
    """Return the UNet: ``(sample [B, C, h, w], timestep [1], encoder_hidden_states [B, L, D])`` → ``[B, C, h, w]``.

    For Stable Diffusion XL, ``text_embeds [B, P]`` and ``time_ids [B, 6]`` follow. For others, residuals may follow:
    one per level from an adapter, or one per skip connection and then one for the middle block from a ControlNet.
    Parameters have diffusers' names.

    ``guidance``: scale that a UNet with ``time_cond_proj_dim`` embeds. It is constant: when weights are loaded, its
    embedding is added to the first bias of the time embedding, and the layer that computed it is removed.

    Raises:
        MissingExtraError: diffusers is not installed.
    """
    library = from_diffusers("diffusers.models.unets.unet_2d_condition", "Stable Diffusion's UNet is built")
    unet: nn.Module = library.UNet2DConditionModel(**dataclasses.asdict(config))
    if isinstance(config, XLUNetConfig):
        unet.register_forward_pre_hook(_added_by_name, with_kwargs=True)
        cast(nn.Module, unet.add_time_proj).register_forward_hook(_as_given)
    else:
        unet.register_forward_pre_hook(_residuals_by_name, with_kwargs=True)
    if guidance is not None:
        unet.register_load_state_dict_post_hook(partial(_fold_guidance, guidance))  # type: ignore[no-untyped-call]
    # diffusers returns a dataclass with one tensor.
    unet.register_forward_hook(_only_sample)
    return unet


@torch.no_grad()
def _fold_guidance(guidance: float, unet: Any, _keys: object) -> None:
    embedding = unet.time_embedding
    if embedding.cond_proj is not None:
        added = embedding.cond_proj(embedded_guidance(guidance, embedding.cond_proj.in_features))
        first = embedding.linear_1
        # A new tensor, because the checkpoint's may be mapped read-only from its file.
        first.bias = nn.Parameter(first.bias + first.weight @ added, requires_grad=False)
        embedding.cond_proj = None


def embedded_guidance(guidance: float, width: int) -> Tensor:
    """Return ``[width]`` float32, as diffusers' ``get_guidance_scale_embedding(guidance - 1, width)`` computes it."""
    half = width // 2
    frequencies = torch.exp(torch.arange(half, dtype=torch.float32) * -(torch.log(torch.tensor(10000.0)) / (half - 1)))
    angles = torch.tensor(guidance - 1) * 1000.0 * frequencies
    return torch.cat([angles.sin(), angles.cos(), torch.zeros(width % 2)])


def _residuals_by_name(
    unet: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    # Residuals follow the text, which is found by its rank, because a rewrite may have removed the timestep.
    after = next((place + 1 for place, value in enumerate(args) if value.ndim == _RANK_OF_TEXT), len(args))
    given, residuals = args[:after], args[after:]
    if not residuals:
        return args, kwargs
    if len(residuals) == len(unet.config.block_out_channels):
        return given, kwargs | {"down_intrablock_additional_residuals": [*residuals]}
    *of_skips, middle = residuals
    return given, kwargs | {
        "down_block_additional_residuals": of_skips,
        "mid_block_additional_residual": middle,
    }


def _added_by_name(
    unet: Any,  # noqa: ARG001 (the hook's signature)
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    *given, text_embeds, time_ids = args
    return tuple(given), kwargs | {"added_cond_kwargs": {"text_embeds": text_embeds, "time_ids": time_ids}}


def _as_given(layer: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:  # noqa: ARG001 (the hook's signature)
    """Convert sine and cosine, computed in float32, to the layer's input dtype, which may be float16."""
    return out.to(args[0].dtype)


def _only_sample(unet: nn.Module, args: tuple[Any, ...], out: Any) -> Tensor:  # noqa: ARG001 (the hook's signature)
    sample: Tensor = out.sample
    return sample
