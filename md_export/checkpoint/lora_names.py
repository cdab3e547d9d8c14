"""Names in LoRA files: the component, module and part that a tensor's name stands for in the style of each trainer."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final, Literal

Part = Literal[
    "down",
    "mid",
    "up",
    "up_bias",
    "hada_w1_a",
    "hada_w1_b",
    "hada_w2_a",
    "hada_w2_b",
    "hada_t1",
    "hada_t2",
    "lokr_w1",
    "lokr_w1_a",
    "lokr_w1_b",
    "lokr_w2",
    "lokr_w2_a",
    "lokr_w2_b",
    "lokr_t2",
    "diff",
    "diff_b",
    "dora_scale",
    "magnitude",
    "alpha",
]

# peft writes its adapter's name, which has no dot, before the end. LyCORIS calls changes of a norm w_norm and b_norm.
_ENDING: Final = re.compile(
    r"(?:\.(?P<peft>lora_[AB]|lora_magnitude_vector)(?:\.[^.]+)??(?:\.(?P<what>weight|bias))?"
    r"|[._]lora[._](?P<side>down|up|mid)\.weight|\.lora_linear_layer\.(?P<older>down|up)\.weight"
    r"|\.(?P<lycoris>hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t2))(?:\.[^.]+)?"
    r"|\.(?P<full>diff|diff_b|w_norm|b_norm|dora_scale|alpha))$"
)
_PEFT: Final[dict[tuple[str, str], Part]] = {
    ("lora_A", "weight"): "down",
    ("lora_B", "weight"): "up",
    ("lora_B", "bias"): "up_bias",
    ("lora_magnitude_vector", "weight"): "magnitude",
    ("lora_magnitude_vector", ""): "magnitude",
}
_FULL: Final[dict[str, Part]] = {"w_norm": "diff", "b_norm": "diff_b"}
# Tools nest these in each other; None: says nothing of the component.
_STARTS: Final = (
    ("base_model.model.", None),
    ("lora_unet_", "unet"),
    ("lora_te_", "text_encoder"),
    ("lora_te1_", "text_encoder"),
    ("lora_te2_", "text_encoder_2"),
    ("lora_te3_", "text_encoder_3"),
    ("lora_transformer_", "transformer"),
    ("lycoris_", None),
    ("unet.", "unet"),
    ("model.diffusion_model.", "unet"),
    ("diffusion_model.", "unet"),
    ("transformer.", "transformer"),
    ("text_encoder.", "text_encoder"),
    ("text_encoder_2.", "text_encoder_2"),
    ("text_encoder_3.", "text_encoder_3"),
    ("text_encoders.clip_l.transformer.", "text_encoder"),
    ("text_encoders.clip_g.transformer.", "text_encoder_2"),
    ("clip_l.transformer.", "text_encoder"),
    ("clip_g.transformer.", "text_encoder_2"),
)
# Modules that begin like this are a text encoder's, in a file of that alone.
_OF_TEXT: Final = ("encoder_layers_", "embeddings_", "final_layer_norm")
_MOST_STARTS: Final = 4


@dataclass(frozen=True)
class Name:
    """A tensor's name, parsed: the component, the module's path with underscores for dots, and the part.

    ``peft``: it is in the style of peft, which keeps alpha in another file.
    """

    component: str
    module: str
    part: Part
    peft: bool


def read_name(name: str) -> Name | None:
    """Parse a tensor's name; None where it is no part of any form that is read."""
    match = _ENDING.search(name)
    part = _part(match) if match else None
    if match is None or part is None:
        return None
    path, component = name[: match.start()], None
    for _ in range(_MOST_STARTS):
        start, owner = next(((start, owner) for start, owner in _STARTS if path.startswith(start)), ("", None))
        path, component = path.removeprefix(start), component or owner
    module = underscored(path).replace("_processor_to_", "_to_")
    inner = module.removeprefix("text_model_")
    component = component or ("text_encoder" if inner != module or inner.startswith(_OF_TEXT) else "unet")
    if match[0].startswith("_lora.") and inner.endswith("_to_out"):
        inner += "_0"
    return Name(component, inner, part, peft=bool(match["peft"]) or name.startswith(_STARTS[0][0]))


def _part(match: re.Match[str]) -> Part | None:
    if match["peft"]:
        return _PEFT.get((match["peft"], match["what"] or ""))
    found: Any = match["side"] or match["older"] or match["lycoris"] or match["full"]
    part: Part = _FULL.get(found, found)
    return part


def underscored(path: str) -> str:
    """``a.b_c.0`` → ``a_b_c_0``, the one form that all styles have in common."""
    return path.replace(".", "_")
