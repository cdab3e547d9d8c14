"""Parse tensor names in LoRA files, in the style of each training tool, into component, module and part."""

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

# peft writes the adapter's name, which has no dot, before the end. LyCORIS names changes of a norm w_norm and b_norm.
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
# Prefixes, which tools nest, with the component that each names; None: no component.
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
# Prefixes of a text encoder's modules, in a file with only a text encoder.
_OF_TEXT: Final = ("encoder_layers_", "embeddings_", "final_layer_norm")
_MOST_STARTS: Final = 4


@dataclass(frozen=True)
class Name:
    """A parsed tensor name: component, module path with underscores for dots, and part.

    ``peft``: the name is in the style of peft, which stores alpha in another file.
    """

    component: str
    module: str
    part: Part
    peft: bool


def read_name(name: str) -> Name | None:
    """Return a tensor's parsed name; None if it belongs to no supported form."""
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
    """Return a path with underscores, which all styles can be converted to: ``a.b_c.0`` → ``a_b_c_0``."""
    return path.replace(".", "_")
