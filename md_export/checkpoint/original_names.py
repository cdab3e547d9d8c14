"""Convert names in diffusers and transformers to those of Stable Diffusion's authors and OpenCLIP."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

_TOP: Final = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
_RESNET: Final = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_IN_A_BLOCK: Final = re.compile(
    r"(down|up)_blocks\.(\d{1,3})\.(resnets|attentions|downsamplers|upsamplers)\.(\d{1,3})(.*)"
)


def original_names(paths: Iterable[str]) -> dict[str, str]:
    """Return the original path of each module of a UNet, by its path in diffusers; ``paths``: all of the UNet's.

    The authors number the blocks of all levels consecutively; a level has one block per ResNet block, and one more
    if it ends with a downsampling convolution.
    """
    paths = list(paths)
    blocks: dict[tuple[str, int], set[str]] = {}
    for path in paths:
        if match := _IN_A_BLOCK.fullmatch(path):
            blocks.setdefault((match[1], int(match[2])), set()).add(f"{match[3]}.{match[4]}")
    first = {"down": 1, "up": 0}
    starts: dict[tuple[str, int], int] = {}
    for side, level in sorted(blocks):
        starts[side, level] = first[side]
        first[side] += sum(name.startswith(("resnets", "downsamplers")) for name in blocks[side, level])
    found = {path: _original(path, starts, blocks) for path in paths}
    return {path: name for path, name in found.items() if name is not None}


def _original(path: str, starts: dict[tuple[str, int], int], blocks: dict[tuple[str, int], set[str]]) -> str | None:
    for own, theirs in _TOP.items():
        if path == own or path.startswith(f"{own}."):
            given = theirs + path.removeprefix(own)
            return _in_resnet(given) if "resnets" in own else given
    match = _IN_A_BLOCK.fullmatch(path)
    if match is None:
        return None
    side, kind, layer, rest = match[1], match[3], int(match[4]), match[5]
    level = side, int(match[2])
    if kind in ("downsamplers", "upsamplers"):
        last = starts[level] + sum(name.startswith("resnets") for name in blocks[level])
        if kind == "downsamplers":
            return f"input_blocks.{last}.0.op{rest.removeprefix('.conv')}"
        attends = any(name.startswith("attentions") for name in blocks[level])
        return f"output_blocks.{last - 1}.{1 + attends}{rest}"
    place = (
        f"{'input' if side == 'down' else 'output'}_blocks.{starts[level] + layer}.{int(kind == 'attentions')}{rest}"
    )
    return _in_resnet(place) if kind == "resnets" else place


def _in_resnet(name: str) -> str:
    return ".".join(_RESNET.get(part, part) for part in name.split("."))


_VAE_NAMES: Final = (
    (re.compile(r"conv_norm_out"), "norm_out"),
    (re.compile(r"conv_shortcut"), "nin_shortcut"),
    (re.compile(r"down_blocks\.(\d{1,3})\.resnets"), r"down.\1.block"),
    (re.compile(r"down_blocks\.(\d{1,3})\.downsamplers\.0"), r"down.\1.downsample"),
    (re.compile(r"mid_block\.resnets\.0"), "mid.block_1"),
    (re.compile(r"mid_block\.resnets\.1"), "mid.block_2"),
    (re.compile(r"mid_block\.attentions\.0\.group_norm"), "mid.attn_1.norm"),
    (re.compile(r"mid_block\.attentions\.0\.to_([qkv])"), r"mid.attn_1.\1"),
    (re.compile(r"mid_block\.attentions\.0\.to_out\.0"), "mid.attn_1.proj_out"),
)
_VAE_UP: Final = re.compile(r"up_blocks\.(\d{1,3})\.(resnets|upsamplers\.0)")


def original_vae_name(name: str, levels: int) -> str:
    """Return the original name of a VAE's tensor, which counts the decoder's levels from the outermost."""

    def up(match: re.Match[str]) -> str:
        return f"up.{levels - 1 - int(match[1])}.{'block' if match[2] == 'resnets' else 'upsample'}"

    for pattern, theirs in _VAE_NAMES:
        name = pattern.sub(theirs, name)
    return _VAE_UP.sub(up, name)


_OPEN_CLIP: Final = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_OPEN_CLIP_TOP: Final = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
    "text_projection.weight": "text_projection",
}
_IN_A_LAYER: Final = re.compile(r"encoder\.layers\.(\d{1,3})\.(.+)\.(weight|bias)")
_JOINED: Final = {"self_attn.q_proj": 0, "self_attn.k_proj": 1, "self_attn.v_proj": 2}


def open_clip_name(name: str) -> tuple[str, int | None] | None:
    """Return OpenCLIP's name of a text encoder's tensor, and which third of that it is; None if OpenCLIP has none.

    OpenCLIP stores queries, keys and values in one tensor, as thirds.
    """
    if name in _OPEN_CLIP_TOP:
        return _OPEN_CLIP_TOP[name], None
    match = _IN_A_LAYER.fullmatch(name)
    if match is None:
        return None
    block = f"transformer.resblocks.{match[1]}"
    if match[2] in _JOINED:
        return f"{block}.attn.in_proj_{match[3]}", _JOINED[match[2]]
    return f"{block}.{_OPEN_CLIP.get(match[2], match[2])}.{match[3]}", None
