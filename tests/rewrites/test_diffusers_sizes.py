"""Full-size UNets, without memory behind their weights: no layer is refused or missed."""

from __future__ import annotations

from typing import Any, Final

import pytest
import torch

from md_export.rewrites import REWRITES
from md_export.rewrites.adopt import adopt
from rewrites.diffusers_models import STEP, unet

FOUR: Final = {
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
    "norm_num_groups": 32,
}
XL: Final = {
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 32,
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
V1: Final = FOUR | {"layers_per_block": 2, "cross_attention_dim": 768, "attention_head_dim": 8}
V2: Final = FOUR | {
    "layers_per_block": 2,
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
    "upcast_attention": True,
}
# Model, its config, transformer blocks, stacks, ResNet blocks, upsamplers, embeddings of time (and, in XL, of size).
MODELS: Final[list[tuple[str, dict[str, Any], int, int, int, int, int]]] = [
    ("Stable Diffusion 1", V1, 16, 16, 22, 3, 1),
    ("Stable Diffusion 2", V2, 16, 16, 22, 3, 1),
    ("pruned as BK-SDM", V1 | {"layers_per_block": 1}, 10, 10, 14, 3, 1),
    ("Stable Diffusion XL", XL, 70, 11, 17, 2, 2),
]


@pytest.mark.parametrize(
    ("config", "blocks", "stacks", "resnets", "upsamplers", "embeddings"),
    [row[1:] for row in MODELS],
    ids=[row[0] for row in MODELS],
)
def test_taken_whole(
    config: dict[str, Any], blocks: int, stacks: int, resnets: int, upsamplers: int, embeddings: int
) -> None:
    with torch.device("meta"):
        net = unet(**config)
    # A block, its two attentions and its gate.
    assert adopt(net) == 4 * blocks + stacks + resnets + upsamplers
    expected = {
        "fold_attention_scale": 2 * blocks,
        "tokens_to_maps": (2 * 4 + 2) * blocks + 2 * stacks,
        "vector_linear_to_conv2d": resnets + 2 * embeddings,
        "staged_group_norm": 2 * resnets + stacks + 1,
        "upsample_to_four_convs": upsamplers,
    }
    assert {name: REWRITES[name].apply(net, STEP) for name in expected} == expected
