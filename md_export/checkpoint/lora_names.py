"""Names in LoRA files: what a tensor's name says in the style of each trainer, and what a module is called there.

Trainers name modules as diffusers does, or as Stable Diffusion's authors did: WebUIs, ComfyUI and SGM.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

Part = Literal["down", "up", "alpha"]

PEFT_PREFIX: Final = "base_model.model."
_ENDINGS: Final[tuple[tuple[str, Part | None], ...]] = (
    (".lora_down.weight", "down"),
    (".lora_up.weight", "up"),
    (".lora_A.weight", "down"),
    (".lora_B.weight", "up"),
    (".lora_A.default.weight", "down"),
    (".lora_B.default.weight", "up"),
    (".lora.down.weight", "down"),
    (".lora.up.weight", "up"),
    (".lora_linear_layer.down.weight", "down"),
    (".lora_linear_layer.up.weight", "up"),
    ("_lora.down.weight", "down"),
    ("_lora.up.weight", "up"),
    (".alpha", "alpha"),
)
_STARTS: Final = (
    ("lora_unet_", "unet"),
    ("lora_te_", "text_encoder"),
    ("lora_te1_", "text_encoder"),
    ("unet.", "unet"),
    ("diffusion_model.", "unet"),
    ("text_encoder.", "text_encoder"),
    ("text_encoders.clip_l.transformer.", "text_encoder"),
    ("clip_l.transformer.", "text_encoder"),
)


@dataclass(frozen=True)
class Name:
    """A tensor's name, parsed: the component, the module's path with underscores for dots, and the part."""

    component: str
    module: str
    part: Part


def read_name(name: str) -> Name | None:
    """Parse a tensor's name; None where it is no LoRA's."""
    ending, part = next(((ending, part) for ending, part in _ENDINGS if name.endswith(ending)), ("", None))
    if part is None:
        return None
    path = name.removeprefix(PEFT_PREFIX).removesuffix(ending)
    start, component = next(((start, owner) for start, owner in _STARTS if path.startswith(start)), ("", "unet"))
    module = underscored(path.removeprefix(start)).replace("_processor_to_", "_to_").removeprefix("text_model_")
    if ending.startswith("_lora.") and module.endswith("_to_out"):
        module += "_0"
    return Name(component, module, part)


def underscored(path: str) -> str:
    """``a.b_c.0`` → ``a_b_c_0``, the one form that all styles have in common."""
    return path.replace(".", "_")


# Modules of diffusers' UNet under the names of Stable Diffusion's authors.
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
