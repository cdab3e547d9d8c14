"""Read LoRA files: their tensors by component and module, checked, and the changes of parameters by these."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import torch
from torch import Tensor, nn

from md_export.checkpoint.files import capped, shown
from md_export.checkpoint.lora_config import PeftConfig, peft_config
from md_export.checkpoint.lora_names import Part, read_name, underscored
from md_export.checkpoint.original_names import original_names
from md_export.checkpoint.weight_change import (
    HADAMARD,
    KRONECKER,
    OF_BIAS,
    OF_WEIGHT,
    Form,
    WeightChange,
    magnitude_of,
)
from md_export.checkpoint.weights import read_metadata, read_tensors
from md_export.errors import CheckpointError
from md_export.spec.loras import Lora

# Files that are often called LoRA and are not supported, by a part of a tensor's name.
_OTHERS: Final = (
    (".on_input", "IA³ adapter"),
    ("ia3_l", "IA³ adapter"),
    ("boft_", "BOFT adapter"),
    ("oft_", "OFT adapter"),
    (".a1.weight", "GLoRA adapter"),
    (".b1.weight", "GLoRA adapter"),
    (".set_weight", "patch that sets whole weights (ComfyUI's set_weight)"),
    (".reshape_weight", "patch that gives weights another shape (ComfyUI's reshape_weight)"),
    ("lora_embedding_", "LoRA of an embedding table"),
    ("modules_to_save", "LoRA with whole layers beside it (peft's modules_to_save)"),
    ("vera_lambda", "VeRA adapter"),
    ("fourierft_", "FourierFT adapter"),
    ("lora_controlnet", "Control-LoRA"),
    ("control_model.", "ControlNet"),
    ("motion_modules.", "motion module (AnimateDiff)"),
    ("image_proj.", "IP-Adapter"),
    ("string_to_param", "textual inversion"),
    ("emb_params", "textual inversion"),
)
# Prefix of textual inversions that tools bundle with a LoRA.
_BUNDLED: Final = "bundle_emb."
_SHOWN: Final = 10
_LONGEST_NAME: Final = 200
_LARGEST_ALPHA: Final = 1e6


@dataclass
class Parts:
    """Tensors of one module, by part; ``name``: name of the first of them in the file."""

    name: str
    tensors: dict[Part, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class LoraFile:
    """An opened LoRA file.

    Attributes:
        lora: the file; its ``config`` is None if the tensors contain alpha.
        modules: memory-mapped tensors by component, and by module path with underscores for dots.
        config: peft's config, from the file's metadata or from the file beside it.
        notes: messages for the user about tensors that are not used.
    """

    lora: Lora
    modules: Mapping[str, Mapping[str, Parts]]
    config: PeftConfig
    notes: tuple[str, ...] = ()


def open_lora(lora: Lora, denoiser: str = "unet") -> LoraFile:
    """Read a LoRA file; errors name it by ``lora.name``.

    ``denoiser``: component for the tensors of the file's UNet. Tools also write ``lora_unet_`` and ``diffusion_model.``
    for transformers, and peft writes no component.

    Raises:
        CheckpointError: the file cannot be read, is not a LoRA, or has incomplete parts, NaN or Inf.
    """
    tensors = read_tensors(lora.path, lora.name)
    bundled = dict.fromkeys(name.split(".", 2)[1] for name in tensors if name.startswith(_BUNDLED))
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(_BUNDLED)}
    _refuse_others(lora, tensors)
    modules: dict[str, dict[str, Parts]] = {}
    has_alpha, is_peft = False, False
    for key, tensor in tensors.items():
        name = read_name(key)
        assert name is not None  # noqa: S101 (others were refused)
        component = denoiser if name.component == "unet" else name.component
        parts = modules.setdefault(component, {}).setdefault(name.module, Parts(key))
        if name.part in parts.tensors:
            raise CheckpointError(f"{lora.name} has {shown(key)} twice, in two styles or for two adapters: remove one")
        parts.tensors[name.part] = tensor
        has_alpha, is_peft = has_alpha or name.part == "alpha", is_peft or name.peft
    for found in modules.values():
        for parts in found.values():
            _check_parts(parts, f"{lora.name}: {shown(parts.name)}")
    lora = lora if is_peft and not has_alpha else replace(lora, config=None)
    config = peft_config(lora, read_metadata(lora.path))
    _check_lengths(lora, modules, config)
    wrapped = any(name.startswith("base_model.model.") for name in tensors)
    if wrapped and not has_alpha and not config.knows_alpha and lora.scale is None:
        raise CheckpointError(
            f"{lora.name} has no alpha, which peft stores in adapter_config.json: put that file beside it, or give "
            f"lora_alpha / r as the scale: {lora.name}:1"
        )
    listed = ", ".join(map(shown, list(bundled)[:_SHOWN]))
    note = f"{lora.name}: left out {len(bundled)} embeddings that are bundled with it ({listed})"
    return LoraFile(lora, modules, config, (note,) if bundled else ())


def _refuse_others(lora: Lora, tensors: Mapping[str, Tensor]) -> None:
    strangers = [name for name in tensors if read_name(name) is None]
    for mark, title in _OTHERS:
        named = next((name for name in tensors if mark in name), None)
        if named is not None:
            raise CheckpointError(
                f"{lora.name} is a {title} ({shown(named)}), which is not supported: give a LoRA, or fuse it beforehand"
            )
    if strangers or not tensors:
        example = f", such as {shown(strangers[0])}" if strangers else ""
        raise CheckpointError(
            f"{lora.name} is not a LoRA: {len(strangers)} of its {len(tensors)} tensors have unknown names"
            f"{example}; give a file in the format of kohya, LyCORIS, diffusers or peft"
        )


def _check_parts(parts: Parts, where: str) -> None:
    tensors = parts.tensors
    forms = [form for form in OF_WEIGHT if form.parts & tensors.keys()]
    twice = [pair for pair in (("diff_b", "up_bias"), ("dora_scale", "magnitude")) if tensors.keys() >= set(pair)]
    if len(forms) > 1 or twice:
        both = [form.title for form in forms] if len(forms) > 1 else twice[0]
        raise CheckpointError(f"{where} is in two forms, {' and '.join(both)}: remove one")
    if not forms and not {"diff_b"} <= tensors.keys() <= {"diff_b", "alpha"}:
        raise CheckpointError(f"{where} is incomplete: a LoRA needs up and down; copy the file again")
    for fault in (fault for form in forms for fault in form.faults(tensors)):
        raise CheckpointError(f"{where} {fault}: the form needs all its parts; copy the file again")
    for part, tensor in tensors.items():
        if part == "alpha" and tensor.numel() != 1:
            raise CheckpointError(f"{where}: alpha is {list(tensor.shape)}, not one number; copy the file again")
        if tensor.numel() == 0:
            raise CheckpointError(
                f"{where}: {part} is {list(tensor.shape)}: with rank 0 it changes nothing; leave it out"
            )
        if part != "alpha" and not (tensor.ndim and tensor.is_floating_point()):
            raise CheckpointError(f"{where}: {part} is {list(tensor.shape)} {tensor.dtype}, not a matrix of floats")
        if not bool(tensor.float().isfinite().all()) or (part == "alpha" and abs(float(tensor)) > _LARGEST_ALPHA):
            raise CheckpointError(f"{where} has NaN or Inf in {part}: use a file from before training diverged")


def _check_lengths(lora: Lora, modules: Mapping[str, Mapping[str, Parts]], config: PeftConfig) -> None:
    for component in (name for name in modules if config.decomposes(name)):
        for parts in modules[component].values():
            if "up" in parts.tensors and not {"magnitude", "dora_scale"} & parts.tensors.keys():
                raise CheckpointError(
                    f"{lora.name}: {shown(parts.name)} has no lora_magnitude_vector, and the config says use_dora: "
                    "copy the file again"
                )


def changes_of(
    file: LoraFile, component: str, module: nn.Module, unused: Callable[[str], bool] = lambda _: False
) -> list[WeightChange]:
    """Return the changes to a component's parameters; ``module`` may be on the meta device.

    ``unused``: whether the layer at a path exists in the checkpoint without effect on the output; it is skipped.

    Raises:
        CheckpointError: a layer is missing, with the nearest name in the message, or has another shape.
    """
    own = {
        path: layer
        for path, layer in module.named_modules()
        if isinstance(getattr(layer, "weight", None), nn.Parameter)
    }
    layers = {underscored(path): path for path in own}
    originals = original_names(path for path, _ in module.named_modules())
    layers |= {underscored(name): path for path, name in originals.items() if path in own}
    given = file.modules.get(component, {})
    modules = {name: parts for name, parts in given.items() if name in layers or not unused(_dotted(name))}
    strangers = [parts.name for name, parts in modules.items() if name not in layers]
    if strangers:
        raise CheckpointError(_unmatched(file, component, strangers, list(own)))
    made: list[WeightChange] = []
    misfits = []
    for name, parts in modules.items():
        path = layers[name]
        try:
            made += _changes(file, component, path, own[path], parts)
        except (IndexError, RuntimeError, ValueError) as error:
            weight = list(own[path].get_parameter("weight").shape)
            why = str(error) if isinstance(error, _MisfitError) else f"{_shapes(parts.tensors)} does not make"
            misfits.append(f"{shown(parts.name)}: {why} {component}.{path}, {weight}")
    if misfits:
        lines = [f"{file.lora.name}: {len(misfits)} of its modules do not fit the layers of this checkpoint:"]
        raise CheckpointError("\n    ".join([*lines, *capped(misfits)]))
    return made


def _dotted(name: str) -> str:
    """Return a name with dots as far as known: ``encoder_layers_11_mlp_fc1`` → ``encoder.layers.11.mlp_fc1``."""
    return _LAYER.sub(r"encoder.layers.\1.", name)


_LAYER: Final = re.compile(r"^encoder_layers_(\d{1,9})_")


class _MisfitError(ValueError):
    """Parts do not fit a layer; the message is the start of a sentence that ends with the layer."""


def _changes(file: LoraFile, component: str, path: str, layer: nn.Module, parts: Parts) -> list[WeightChange]:
    tensors, own = parts.tensors, dict(layer.named_parameters(recurse=False))
    made = []
    for parameter, forms in (("weight", OF_WEIGHT), ("bias", OF_BIAS)):
        form = next((form for form in forms if form.parts & tensors.keys()), None)
        if form is None:
            continue
        if parameter not in own:
            raise _MisfitError("there is no bias in")
        if form.ranked and not isinstance(layer, (nn.Linear, nn.Conv2d)):
            raise _MisfitError("a LoRA needs a linear layer or a convolution, and this is neither:")
        if form.ranked and getattr(layer, "groups", 1) > 1:
            raise _MisfitError("a LoRA cannot change a convolution with groups:")
        shape = tuple(own[parameter].shape)
        used = {part: tensor for part, tensor in tensors.items() if part in form.parts}
        _check_shape(form, used, shape)
        scale = _scale(file.config, component, path, form, tensors) if form.ranked else 1.0
        magnitude = magnitude_of(tensors, shape) if parameter == "weight" else None
        made.append(WeightChange(path, parameter, form, shape, used, scale, file.lora.factor, magnitude))
    return made


def _scale(config: PeftConfig, component: str, path: str, form: Form, tensors: Mapping[Part, Tensor]) -> float:
    rank, alpha = form.rank(tensors), tensors.get("alpha")
    if alpha is None:
        return config.scale(component, path, rank)
    return float(alpha) / rank if rank else 1.0


def _check_shape(form: Form, parts: Mapping[Part, Tensor], shape: tuple[int, ...]) -> None:
    """Raise if the parts do not make a parameter of ``shape``; computed on the meta device, without memory."""
    hollow = {part: torch.empty(tensor.shape, dtype=torch.float64, device="meta") for part, tensor in parts.items()}
    made = tuple(form.delta(hollow).shape)
    # Tools write a 1×1 convolution as a linear layer and the reverse; LyCORIS flattens kernels.
    flat = form in (HADAMARD, KRONECKER) and made == (shape[0], torch.Size(shape[1:]).numel())
    if not flat and _without_ones(made) != _without_ones(shape):
        raise _MisfitError(f"{_shapes(parts)} does not make")


def _shapes(parts: Mapping[Part, Tensor]) -> str:
    return " · ".join(f"{part} {list(tensor.shape)}" for part, tensor in parts.items() if part != "alpha")


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    kept = list(shape)
    while len(kept) > 2 and kept[-1] == 1:
        kept.pop()
    return tuple(kept)


def _unmatched(file: LoraFile, component: str, names: list[str], paths: list[str]) -> str:
    near, lines = {underscored(path): path for path in paths}, []
    for name in names[:_SHOWN]:
        key = read_name(name)
        close = difflib.get_close_matches(key.module[:_LONGEST_NAME], near, n=1, cutoff=0.0) if key else []
        lines.append(f"{shown(name)} (nearest: {component}.{near[close[0]]})" if close else shown(name))
    title = f"{file.lora.name}: {len(names)} of its modules are not in this checkpoint's {component}:"
    listed = "\n    ".join([title, *capped([*lines, *names[_SHOWN:]], _SHOWN)])
    return f"{listed}\n  it was trained for another model; use it with the checkpoint that it was trained for"
