"""LoRA files: their tensors by component and module, each checked by itself, and up · down added to a weight."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import sqrt
from typing import Final

from pydantic_core import from_json
from torch import Tensor, nn

from md_export.checkpoint.files import TABLE_LIMIT, capped, shown
from md_export.checkpoint.lora_names import PEFT_PREFIX, Part, original_names, read_name, underscored
from md_export.checkpoint.weights import read_metadata, read_tensors
from md_export.errors import CheckpointError
from md_export.spec.loras import Lora

# Other forms of adapters, by a part of their tensors' names; none of them is up · down.
_OTHER_FORMS: Final = (
    ("lora_magnitude_vector", "DoRA"),
    ("dora_scale", "DoRA"),
    ("hada_", "LoHa"),
    ("lokr_", "LoKr"),
    ("lora_mid", "Tucker"),
)
# diffusers' key for peft's config; its fields may have the component's name as a prefix.
_METADATA: Final = "lora_adapter_metadata"


@dataclass
class Parts:
    """The tensors of one module; ``name``: the name of one of them in the file."""

    name: str
    tensors: dict[Part, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class LoraFile:
    """A LoRA file, opened.

    Attributes:
        modules: by component, and by their paths with underscores for dots; memory-mapped.
        config: peft's config in the file's metadata.
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
    form = next((form for name in tensors for mark, form in _OTHER_FORMS if mark in name), None)
    if form is not None:
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
    """Refuse a LoRA of peft without alpha: peft keeps it in another file, so the strength is unknown."""
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


_SHOWN: Final = 10
_LONGEST_NAME: Final = 200
_LARGEST_ALPHA: Final = 1e6

Layer = nn.Linear | nn.Conv2d


@dataclass(frozen=True)
class LowRank:
    """The change that one LoRA makes to one module's weight: ``scale`` · up · down.

    Attributes:
        module: path in its component.
        down: ``[r, in]``, or ``[r, in, k, k]`` of a convolution.
        up: ``[out, r]``, or ``[out, r, 1, 1]``.
        scale: alpha / r times the user's.
    """

    module: str
    down: Tensor
    up: Tensor
    scale: float


def changes_of(file: LoraFile, component: str, module: nn.Module) -> list[LowRank]:
    """Return the change of each layer of a component; ``module`` may be on the meta device.

    Raises:
        CheckpointError: a layer is not there, or is of another shape; names the nearest there is.
    """
    own = {path: layer for path, layer in module.named_modules() if isinstance(layer, Layer)}
    layers = {underscored(path): (path, layer) for path, layer in own.items()}
    originals = original_names(path for path, _ in module.named_modules()) if component == "unet" else {}
    layers |= {underscored(name): (path, own[path]) for path, name in originals.items() if path in own}
    modules = file.modules.get(component, {})
    strangers = [parts.name for name, parts in modules.items() if name not in layers]
    if strangers:
        raise CheckpointError(_unmatched(file, component, strangers, list(own)))
    misfits = [
        f"{shown(parts.name)}: {why} {component}.{layers[name][0]}, {list(layers[name][1].weight.shape)}"
        for name, parts in modules.items()
        if (why := _misfit(layers[name][1], parts))
    ]
    if misfits:
        lines = [f"{file.lora.name}: {len(misfits)} of its modules are of another model than this checkpoint's:"]
        raise CheckpointError("\n    ".join([*lines, *capped(misfits)]))
    return [_low_rank(file, component, *layers[name], parts) for name, parts in modules.items()]


def _misfit(layer: Layer, parts: Parts) -> str | None:
    """Return why a LoRA's halves do not fit the layer's weight; None where they do."""
    if isinstance(layer, nn.Conv2d) and layer.groups > 1:
        return "no LoRA fits a convolution in groups:"
    down, up = parts.tensors["down"], parts.tensors["up"]
    kernel = tuple(layer.weight.shape[2:])
    # A 1×1 convolution and a linear layer are one thing, and some write the one for the other.
    fits = (
        (up.shape[0], down.shape[1]) == tuple(layer.weight.shape[:2])
        and up.shape[1] == down.shape[0]
        and _is_point(up.shape[2:])
        and (tuple(down.shape[2:]) == kernel or (_is_point(kernel) and _is_point(down.shape[2:])))
    )
    return None if fits else f"up {list(up.shape)} · down {list(down.shape)} does not make"


def _is_point(kernel: tuple[int, ...]) -> bool:
    return all(size == 1 for size in kernel)


def _low_rank(file: LoraFile, component: str, path: str, layer: Layer, parts: Parts) -> LowRank:
    shape, rank = tuple(layer.weight.shape), parts.tensors["down"].shape[0]
    down = parts.tensors["down"].reshape(rank, *shape[1:])
    up = parts.tensors["up"].reshape(shape[0], rank, *(1 for _ in shape[2:]))
    alpha = parts.tensors.get("alpha")
    own = _own_scale(file.config, component, path, rank) if alpha is None else float(alpha) / rank
    return LowRank(path, down, up, file.lora.factor * own)


def _own_scale(config: Mapping[str, object], component: str, path: str, rank: int) -> float:
    """Return alpha / rank of a module whose alpha is no tensor, from peft's config; 1 without one."""
    for prefix in (f"{component}.", ""):
        alpha, patterns = (config.get(prefix + field) for field in ("lora_alpha", "alpha_pattern"))
        if isinstance(patterns, dict):
            # peft reads these as regular expressions; names of modules are what is written.
            alpha = next((value for key, value in patterns.items() if f".{path}".endswith(f".{key}")), alpha)
        if isinstance(alpha, (int, float)) and abs(alpha) <= _LARGEST_ALPHA:
            return float(alpha) / (sqrt(rank) if config.get(f"{prefix}use_rslora") is True else rank)
    return 1.0


def _unmatched(file: LoraFile, component: str, names: list[str], paths: list[str]) -> str:
    near, lines = {underscored(path): path for path in paths}, []
    for name in names[:_SHOWN]:
        key = read_name(name)
        close = difflib.get_close_matches(key.module[:_LONGEST_NAME], near, n=1, cutoff=0.0) if key else []
        lines.append(f"{shown(name)} (nearest: {component}.{near[close[0]]})" if close else shown(name))
    title = f"{file.lora.name}: {len(names)} of its modules are not in this checkpoint's {component}:"
    listed = "\n    ".join([title, *capped([*lines, *names[_SHOWN:]], _SHOWN)])
    return f"{listed}\n  it was trained for another model; give the checkpoint that it is for"


def fused(weights: dict[str, Tensor], changes: Iterable[LowRank], what: str) -> dict[str, Tensor]:
    """Return the float32 ``weights`` of a component with the changes added; the given tensors are not modified.

    Raises:
        CheckpointError: a sum is not finite.
    """
    made = dict(weights)
    for change in changes:
        name = f"{change.module}.weight"
        made[name] = made[name] + product(change)
        if not bool(made[name].isfinite().all()):
            raise CheckpointError(f"{what}: {name} becomes NaN or Inf with its LoRA; give a smaller scale")
    return made


def product(change: LowRank) -> Tensor:
    """Return ``scale`` · up · down in float32, in the weight's shape: ``[out, in]`` or ``[out, in, k, k]``."""
    up, down = change.up.double().flatten(1), change.down.double()
    flat = up @ down.flatten(1)
    return (change.scale * flat).float().reshape(up.shape[0], *down.shape[1:])
