"""Names that Stable Diffusion's authors gave the modules of their UNet, by their names in diffusers."""

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

    The authors number the blocks of all levels in one row; a level has as many as it has ResNet blocks, and one more
    where it ends in a convolution that halves.
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
