"""A LoRA file → its tensors by component and module, each checked by itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from pydantic_core import from_json
from torch import Tensor

from md_export.checkpoint.files import TABLE_LIMIT, shown
from md_export.checkpoint.weights import read_metadata, read_tensors
from md_export.errors import CheckpointError
from md_export.spec.loras import Lora

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


# diffusers keeps peft's config there; names of components stand before its fields, or none.
_METADATA: Final = "lora_adapter_metadata"


@dataclass
class Parts:
    """The tensors of one module; ``name``: what one of them is called in the file."""

    name: str
    tensors: dict[Part, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class LoraFile:
    """A LoRA file, opened.

    Attributes:
        modules: by component, and by their paths with underscores for dots; memory-mapped.
        config: what peft says of them beside the tensors.
    """

    lora: Lora
    modules: Mapping[str, Mapping[str, Parts]]
    config: Mapping[str, object]


def open_lora(lora: Lora) -> LoraFile:
    """Read a LoRA file.

    Raises:
        CheckpointError: it cannot be read, is no LoRA, or holds halves without the other, NaN or Inf.
    """
    tensors, metadata = read_tensors(lora.path), read_metadata(lora.path)
    modules: dict[str, dict[str, Parts]] = {}
    for key, tensor in _checked(lora, tensors).items():
        name = read_name(key)
        assert name is not None  # noqa: S101 (others were refused)
        parts = modules.setdefault(name.component, {}).setdefault(name.module, Parts(key))
        if name.part in parts.tensors:
            raise CheckpointError(f"{lora.name} holds {shown(key)} twice, in two styles: remove one")
        parts.tensors[name.part] = tensor
    for found in modules.values():
        for parts in found.values():
            _check_parts(parts, f"{lora.name}: {shown(parts.name)}")
    config = _config(lora, metadata)
    _check_alpha_is_known(lora, list(tensors), config)
    return LoraFile(lora, modules, config)


def _checked(lora: Lora, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    form = other_form(tensors)
    if form:
        raise CheckpointError(f"{lora.name} is a {form} adapter, which is not read: give a LoRA, or fuse it beforehand")
    strangers = [name for name in tensors if read_name(name) is None]
    if strangers or not tensors:
        example = f", such as {shown(strangers[0])}" if strangers else ""
        raise CheckpointError(
            f"{lora.name} is no LoRA: {len(strangers)} of its {len(tensors)} tensors are neither up, down nor alpha"
            f"{example}; give a file in kohya's, diffusers' or peft's form"
        )
    return tensors


def _check_parts(parts: Parts, where: str) -> None:
    tensors = parts.tensors
    if "up" not in tensors or "down" not in tensors:
        raise CheckpointError(f"{where} has no other half: up and down belong together; copy the file again")
    up, down = tensors["up"], tensors["down"]
    if up.ndim not in (2, 4) or down.ndim not in (2, 4) or not down.shape[0]:
        raise CheckpointError(f"{where}: up {list(up.shape)} and down {list(down.shape)} are no matrices or kernels")
    if "alpha" in tensors and tensors["alpha"].numel() != 1:
        raise CheckpointError(f"{where}: alpha is {list(tensors['alpha'].shape)}, and should be one number")
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise CheckpointError(f"{where} holds NaN or Inf: use a file from before training diverged")


def _check_alpha_is_known(lora: Lora, names: Iterable[str], config: Mapping[str, object]) -> None:
    """peft alone keeps alpha in a file beside, so nothing here says how strong such a LoRA is."""
    peft = any(name.startswith(PEFT_PREFIX) for name in names) and not any(name.endswith(".alpha") for name in names)
    if peft and not config and lora.scale is None:
        raise CheckpointError(
            f"{lora.name} does not say its alpha, which peft keeps in adapter_config.json: give lora_alpha / r "
            f"yourself, as {lora.name}:1"
        )


def _config(lora: Lora, metadata: Mapping[str, str]) -> dict[str, object]:
    text = metadata.get(_METADATA, "{}")
    try:
        values = from_json(text, allow_inf_nan=False) if len(text) <= TABLE_LIMIT else None
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise CheckpointError(f"{lora.name}: its {_METADATA} is no JSON object; save it again")
    return values
