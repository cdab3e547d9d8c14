"""What the tensors of a LoRA file are called: kohya's names, diffusers' and peft's, old ones among them.

===============================  ======================================================
kohya                            ``lora_unet_<path_with_underscores>.lora_down.weight``
diffusers with peft              ``unet.<path>.lora_A.weight``
diffusers before                 ``unet.<path>.lora.down.weight``
diffusers' attention processors  ``unet.<path>.processor.to_q_lora.down.weight``
peft alone                       ``base_model.model.<path>.lora_A.weight``
===============================  ======================================================

The text encoder's begin with ``lora_te_``, ``lora_te1_`` or ``text_encoder.``; those that begin with no component's
name are the UNet's.
"""

from __future__ import annotations

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
    ("text_encoder.", "text_encoder"),
)
# Other ways to change a weight, by what their names hold; none of them is up · down.
_OTHER_FORMS: Final = (
    ("lora_magnitude_vector", "DoRA"),
    ("dora_scale", "DoRA"),
    ("hada_", "LoHa"),
    ("lokr_", "LoKr"),
    ("lora_mid", "Tucker"),
)


@dataclass(frozen=True)
class Name:
    """What a tensor's name says: the component, the module's path with underscores for dots, and which part it is."""

    component: str
    module: str
    part: Part


def read_name(name: str) -> Name | None:
    """The meaning of a tensor's name; None where it is no LoRA's."""
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


def other_form(names: Iterable[str]) -> str | None:
    """What kind of adapter a name shows that is no LoRA; None where there is none."""
    return next((form for name in names for mark, form in _OTHER_FORMS if mark in name), None)
