"""Infer the configs of a Stable Diffusion model in one file from the shapes of its tensors, by their original names.

Shapes give the widths, depths and cross-attention. They do not give the number of heads, of groups, or the activation;
these are taken from the published models (Rombach et al., v1-inference.yaml and v2-inference-v.yaml).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from md_export.errors import CheckpointError
from md_export.models.diffusers_unet import DiffusersUNetConfig, XLUNetConfig
from md_export.models.vae import VAEConfig

Shapes = Mapping[str, tuple[int, ...]]
# Width and attention depth of each block of a level.
Level = list[tuple[int, int]]

_GROUPS: Final = 32
# Stable Diffusion 1 has 8 heads at every width; later versions have heads of width 64.
_HEADS: Final = 8
_HEAD_WIDTH: Final = 64
# Limit, several times the number of blocks in any known model of this kind.
_MOST_BLOCKS: Final = 256
# Numbers that describe the size and crop of a picture.
_NUMBERS: Final = 6
# Size of CLIP's vocabulary; its last ids are the special tokens.
_VOCABULARY: Final = 49408


class UnknownShapeError(CheckpointError):
    """The shapes do not determine a config."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}: give a folder with the model's config files, --config FOLDER")


def unet_config(shapes: Shapes, sample_size: int, pooled: int | None = None) -> DiffusersUNetConfig:
    """Return the UNet's config; names are those after ``model.diffusion_model.``.

    ``pooled``: width of the pooled text, for Stable Diffusion XL only.

    Raises:
        CheckpointError: a tensor that gives a size is missing, or the shapes do not determine the config.
    """
    levels = _levels(shapes)
    widths = tuple(level[-1][0] for level in levels)
    attends = [any(depth for _, depth in level) for level in levels]
    depths = [_one([max(depth, 1) for _, depth in level]) for level in levels]
    if pooled is None and any(isinstance(depth, tuple) for depth in depths):
        raise UnknownShapeError("the UNet's attention has several depths within a level")
    linear = any(name.endswith(".1.proj_in.weight") and len(shape) == 2 for name, shape in shapes.items())
    text = next((shape[1] for name, shape in shapes.items() if name.endswith("attn2.to_k.weight")), None)
    if text is None:
        raise UnknownShapeError("the UNet has no cross-attention to text (no attn2.to_k.weight)")
    step = _HEAD_WIDTH if linear else _GROUPS
    if any(width % max(step, _GROUPS) for width in widths):
        raise UnknownShapeError(f"the UNet's widths {list(widths)} are not multiples of {max(step, _GROUPS)}")
    down = tuple("CrossAttnDownBlock2D" if one else "DownBlock2D" for one in attends)
    up = tuple("CrossAttnUpBlock2D" if one else "UpBlock2D" for one in reversed(attends))
    plain = DiffusersUNetConfig(
        sample_size=sample_size,
        in_channels=_size(shapes, "input_blocks.0.0.weight", 1),
        out_channels=_size(shapes, "out.2.weight", 0),
        down_block_types=down,
        mid_block_type=_middle(shapes),
        up_block_types=up,
        block_out_channels=widths,
        layers_per_block=_one([len(level) for level in levels]),
        norm_num_groups=_GROUPS,
        cross_attention_dim=text,
        transformer_layers_per_block=depths[0]
        if len(set(depths)) == 1 and isinstance(depths[0], int)
        else tuple(depths),
        attention_head_dim=tuple(width // _HEAD_WIDTH for width in widths) if linear else _HEADS,
        use_linear_projection=linear,
    )
    return plain if pooled is None else _of_xl(plain, shapes, levels, pooled)


def _of_xl(plain: DiffusersUNetConfig, shapes: Shapes, levels: list[Level], pooled: int) -> XLUNetConfig:
    """Return the config with the fields of Stable Diffusion XL; pruned models have other depths in the up blocks."""
    width = _size(shapes, "label_emb.0.0.weight", 1)
    each, rest = divmod(width - pooled, _NUMBERS)
    if rest or each <= 0:
        raise UnknownShapeError(f"the UNet's added embedding has {width} channels, and the pooled text has {pooled}")
    blocks = iter(range(_MOST_BLOCKS))
    up = [
        [_depth(shapes, f"output_blocks.{next(blocks)}.") for _ in range(len(level) + 1)] for level in reversed(levels)
    ]
    pairs = zip(up, reversed(levels), strict=True)
    mirrored = all(len({*on_the_way, *(depth for _, depth in level)}) == 1 for on_the_way, level in pairs)
    return XLUNetConfig(
        **vars(plain),
        addition_time_embed_dim=each,
        projection_class_embeddings_input_dim=width,
        reverse_transformer_layers_per_block=None
        if mirrored
        else tuple(_one([max(depth, 1) for depth in on_the_way]) for on_the_way in up),
    )


def _middle(shapes: Shapes) -> str | None:
    """Return the class of the middle block: None or a class without attention for some pruned UNets."""
    if "middle_block.0.in_layers.2.weight" not in shapes:
        return None
    return "UNetMidBlock2DCrossAttn" if "middle_block.1.proj_in.weight" in shapes else "UNetMidBlock2D"


def _depth(shapes: Shapes, block: str) -> int:
    return _count(shapes, f"{block}1.transformer_blocks.", ".norm1.weight")


def _levels(shapes: Shapes) -> list[Level]:
    """Return width and attention depth of each down block, by level."""
    levels: list[Level] = [[]]
    for block in range(1, _MOST_BLOCKS):
        start = f"input_blocks.{block}."
        if f"{start}0.op.weight" in shapes:
            levels.append([])
        elif f"{start}0.in_layers.2.weight" in shapes:
            levels[-1].append((_size(shapes, f"{start}0.in_layers.2.weight", 0), _depth(shapes, start)))
        else:
            break
    if not all(levels):
        raise UnknownShapeError("the UNet has a level without blocks")
    return levels


def vae_config(shapes: Shapes, scaling_factor: float) -> VAEConfig:
    """Return the VAE's config; names are those after ``first_stage_model.``.

    Raises:
        CheckpointError: a tensor that gives a size is missing, or the shapes do not determine the config.
    """
    widths, layers = _vae_levels(shapes, "encoder.down")
    up_widths, up_layers = _vae_levels(shapes, "decoder.up")
    if any(width % _GROUPS for width in (*widths, *up_widths)):
        raise UnknownShapeError(f"the VAE's widths {list(widths)} are not multiples of {_GROUPS}")
    return VAEConfig(
        in_channels=_size(shapes, "encoder.conv_in.weight", 1),
        out_channels=_size(shapes, "decoder.conv_out.weight", 0),
        latent_channels=_size(shapes, "decoder.conv_in.weight", 1),
        block_out_channels=widths,
        layers_per_block=layers,
        decoder_block_out_channels=None if up_widths == widths else up_widths,
        decoder_layers_per_block=None if up_layers == layers + 1 else up_layers,
        mid_block_add_attention="decoder.mid.attn_1.q.weight" in shapes,
        norm_num_groups=_GROUPS,
        scaling_factor=scaling_factor,
        use_quant_conv="quant_conv.weight" in shapes,
        use_post_quant_conv="post_quant_conv.weight" in shapes,
    )


def _vae_levels(shapes: Shapes, start: str) -> tuple[tuple[int, ...], int]:
    count = _count(shapes, f"{start}.", ".block.0.conv1.weight")
    widths = tuple(_size(shapes, f"{start}.{level}.block.0.conv1.weight", 0) for level in range(count))
    layers = {_count(shapes, f"{start}.{level}.block.", ".conv1.weight") for level in range(count)}
    if len(layers) != 1:
        raise UnknownShapeError(f"the VAE's levels ({start}) have different numbers of blocks")
    return widths, layers.pop()


def clip_config(shapes: Shapes, open_clip: bool, pooled: bool = False) -> dict[str, Any]:
    """Return the config of CLIP's text model; ``open_clip``: with OpenCLIP's names and activation.

    OpenCLIP's text model ends with a projection. Files contain it and the last layer, but Stable Diffusion 2 uses
    neither (FrozenOpenCLIPEmbedder, ``layer="penultimate"``). ``pooled``: both are used, as in Stable Diffusion XL.

    Raises:
        CheckpointError: a tensor that gives a size is missing, or the shapes do not determine the config.
    """
    layers = "transformer.resblocks." if open_clip else "encoder.layers."
    embedding = "token_embedding.weight" if open_clip else "embeddings.token_embedding.weight"
    places = "positional_embedding" if open_clip else "embeddings.position_embedding.weight"
    inner = "mlp.c_fc.weight" if open_clip else "mlp.fc1.weight"
    rows, width = (_size(shapes, embedding, axis) for axis in (0, 1))
    count = _count(shapes, layers, f".{inner}")
    if width % _HEAD_WIDTH or not count:
        raise UnknownShapeError(
            f"the text encoder has no layers, or its width {width} is not a multiple of {_HEAD_WIDTH}"
        )
    start, end = (49406, 49407) if rows >= _VOCABULARY else (rows - 2, rows - 1)
    return {
        "vocab_size": rows,
        "hidden_size": width,
        "intermediate_size": _size(shapes, f"{layers}0.{inner}", 0),
        "projection_dim": _projected(shapes) if pooled else width,
        "num_hidden_layers": count - 1 if open_clip and not pooled and _has_last_layer(shapes, count) else count,
        "num_attention_heads": width // _HEAD_WIDTH,
        "max_position_embeddings": _size(shapes, places, 0),
        "hidden_act": "gelu" if open_clip else "quick_gelu",
        "layer_norm_eps": 1e-5,
        "bos_token_id": start,
        "eos_token_id": end,
        "pad_token_id": 0 if open_clip else end,
    }


# Layers of OpenCLIP's ViT-H; files that were converted back from diffusers have one layer less and no projection.
_LAYERS_OF_H: Final = 24


def _has_last_layer(shapes: Shapes, count: int) -> bool:
    return "text_projection" in shapes or count == _LAYERS_OF_H


def _projected(shapes: Shapes) -> int:
    """Return the width of the pooled text; some tools store the projection transposed, as in transformers."""
    turned = "text_projection.weight" in shapes
    return _size(shapes, "text_projection.weight", 0) if turned else _size(shapes, "text_projection", 1)


def _size(shapes: Shapes, name: str, axis: int) -> int:
    shape = shapes.get(name, ())
    if len(shape) <= axis or not shape[axis]:
        raise CheckpointError(f"it lacks {name}, which gives a size: give the file of a whole model")
    return shape[axis]


def _count(shapes: Shapes, start: str, end: str) -> int:
    """Return how many of ``start0end``, ``start1end``, … exist."""
    return next((count for count in range(_MOST_BLOCKS) if f"{start}{count}{end}" not in shapes), _MOST_BLOCKS)


def _one(values: list[int]) -> int | tuple[int, ...]:
    """Return one value if all levels have the same, else one per level."""
    return values[0] if len(set(values)) == 1 else tuple(values)
