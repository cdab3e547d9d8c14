"""Modules of diffusers' UNet under the names of Stable Diffusion's authors, as WebUIs, ComfyUI and SGM write them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

_TOP: Final = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
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
_IN_A_BLOCK: Final = re.compile(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)(.*)")


def original_names(paths: Iterable[str]) -> dict[str, str]:
    """Return the original path of each module of a UNet, by its path in diffusers; ``paths``: all of the UNet's."""
    paths = list(paths)
    layers = 1 + max(
        (int(m[1]) for m in (re.match(r"down_blocks\.0\.resnets\.(\d+)", p) for p in paths) if m), default=0
    )
    found = {path: _original(path, layers, paths) for path in paths}
    return {path: name for path, name in found.items() if name is not None}


def _original(path: str, layers: int, paths: list[str]) -> str | None:
    for own, theirs in _TOP.items():
        if path == own or path.startswith(f"{own}."):
            given = theirs + path.removeprefix(own)
            return _in_resnet(given) if "resnets" in own else given
    match = _IN_A_BLOCK.fullmatch(path)
    if match is None:
        return None
    side, block, kind, layer, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
    first = block * (layers + 1) + (side == "down")
    if kind == "downsamplers":
        return f"input_blocks.{first + layers}.0.op{rest.removeprefix('.conv')}"
    if kind == "upsamplers":
        attends = any(other.startswith(f"up_blocks.{block}.attentions.") for other in paths)
        return f"output_blocks.{first + layers}.{1 + attends}{rest}"
    place = f"{'input' if side == 'down' else 'output'}_blocks.{first + layer}.{int(kind == 'attentions')}{rest}"
    return _in_resnet(place) if kind == "resnets" else place


def _in_resnet(name: str) -> str:
    return ".".join(_RESNET.get(part, part) for part in name.split("."))
