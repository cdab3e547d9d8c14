"""Convert a Stable Diffusion model in one file, as its authors and most tools save it, to diffusers' folder layout."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import save_file
from torch import Tensor

from md_export.checkpoint import open_checkpoint
from md_export.checkpoint.architectures import FILES, config_files
from md_export.checkpoint.configs import check_vocabulary
from md_export.checkpoint.files import capped, check_tokenizer, copy_tokenizer, read_json, shown
from md_export.checkpoint.modules import MAX_TENSORS, difference
from md_export.checkpoint.quantized import refuse_gguf, refuse_quantized
from md_export.checkpoint.random_tokenizer import write_json
from md_export.checkpoint.single_file_config import Shapes, clip_config, unet_config, vae_config
from md_export.checkpoint.single_file_kinds import lone_part, other_model
from md_export.checkpoint.single_file_parts import KINDS, UNET, VAE, Kind, Text, module_of, shaped, sources
from md_export.checkpoint.single_file_schedule import Trained, trained_for, trained_size
from md_export.checkpoint.weights import check_stored, is_weight, read_metadata, stored_values
from md_export.errors import CheckpointError, ConfigError
from md_export.models.config import ModelConfig
from md_export.models.families import family_of
from md_export.system.files import refuse_existing, require_space, staging

Tensors = dict[str, Tensor]

SUFFIXES: Final = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
TOKENIZER_OF: Final = "https://huggingface.co/openai/clip-vit-large-patch14"
# Tensors in such files that are not used: training averages, losses, positions, CLIP's image part.
_LEFT_OUT: Final = ("model_ema.", f"{VAE}loss.", f"{VAE}model_ema.")
_LEFT_OUT_ENDS: Final = (".position_ids", ".logit_scale", ".text_projection", ".text_projection.weight", ".attn_mask")
# Layers of text encoders; the last one is not used.
_LAYER: Final = re.compile(r"(?:transformer\.resblocks|(?:text_model\.)?encoder\.layers)\.(\d{1,4})\.")
# Side of the latents of Stable Diffusion 2 models that predict v.
_SIZE_OF_V: Final = 96
# OpenCLIP's tokenizer pads with id 0, CLIP's with the end token.
_OPEN_CLIP_PAD: Final = "!"


@dataclass(frozen=True)
class _File:
    path: Path
    tensors: Tensors
    metadata: Mapping[str, str]

    def under(self, prefix: str) -> Tensors:
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}

    def shapes(self, prefix: str) -> Shapes:
        return {name: tuple(tensor.shape) for name, tensor in self.under(prefix).items()}


def unpack(
    file: Path,
    tokenizer: Path | None,
    out: Path,
    config: ModelConfig | None = None,
    prediction: str | None = None,
) -> str:
    """Write ``file`` as a folder, with tensors in their stored dtypes; return a description of the model.

    Args:
        file: ``.safetensors`` or torch file of a whole model: UNet, VAE and text encoder.
        tokenizer: folder with CLIP's ``vocab.json`` and ``merges.txt``, which such files do not contain.
        out: folder to create.
        config: configs of the model; by default read from the shapes of the tensors.
        prediction: ``epsilon`` or ``v_prediction``; by default read from the file.

    Raises:
        CheckpointError: the file cannot be read, is another model, or lacks a part.
        MissingExtraError: diffusers, which provides the UNet, is not installed.
        OutputError: ``out`` exists, or cannot be written completely.
    """
    refuse_existing(out)
    model = _read(file)
    kind = _kind_of(model)
    words = kind.title
    if config is None:
        trained = trained_for(file, model.tensors, model.metadata, _is_ambiguous(kind, model), prediction)
        config = _config(kind, model, trained)
        zero = " with zero terminal SNR" if trained.zero_snr else ""
        height, width = config.picture_shape
        words = f"{kind.title}, {width}×{height}, predicts {trained.prediction}{zero} ({trained.why})"
    elif config.t5 or [name for _, name, _ in config.text_encoders] != [part.folder for part in kind.texts]:
        raise CheckpointError(f"{file} holds {kind.title}, and --config another family: give configs of this one")
    if tokenizer is None:
        raise CheckpointError(
            f"{file} holds no tokenizer: give a folder with CLIP's vocab.json and merges.txt, --tokenizer DIR; they "
            f"are in {TOKENIZER_OF}"
        )
    for _, encoder, text in config.text_encoders:
        _check_tokenizer(tokenizer, encoder, text)
    require_space(out, sum(tensor.nbytes for tensor in model.tensors.values()))
    with staging(out) as folder:
        for name, content in config_files(config).items():
            write_json(folder / name, content)
        used: set[str] = set()
        for name in FILES:
            tensors, taken = _converted(model, kind, name, config)
            used |= taken
            if tensors:
                save_file(tensors, folder / name / FILES[name], metadata={"format": "pt"})
        _refuse_the_rest(model, kind, used, config)
        for part, (name, _, _) in zip(kind.texts, config.text_encoders, strict=True):
            _write_tokenizer(tokenizer, folder / name, part)
        open_checkpoint(folder).check()
    return words


def _read(file: Path) -> _File:
    if file.suffix == ".gguf":
        refuse_gguf(str(file))
    if file.suffix not in SUFFIXES or not file.is_file():
        raise CheckpointError(f"{file} is not a model file: give one that ends in {', '.join(SUFFIXES)}")
    values = stored_values(file)
    metadata = read_metadata(file) if file.suffix == ".safetensors" else {}
    step, nested = values.get("global_step"), values.get("state_dict")
    # Files of PyTorch Lightning have the tensors in this table.
    values = nested if isinstance(nested, dict) else values
    if isinstance(step, int):
        metadata["global_step"] = str(step)
    tensors = {name: value for name, value in values.items() if isinstance(name, str) and isinstance(value, Tensor)}
    refuse_quantized(tensors.keys(), str(file))
    if len(tensors) > MAX_TENSORS:
        raise CheckpointError(f"{file} holds {len(tensors):,} tensors; the limit is {MAX_TENSORS:,}: replace it")
    for name, tensor in tensors.items():
        check_stored(tensor, name, str(file))
    return _File(file, tensors, metadata)


def _kind_of(model: _File) -> Kind:
    names, file = model.tensors.keys(), model.path

    def holds(prefix: str) -> bool:
        return any(name.startswith(prefix) for name in names)

    other = other_model(names)
    if other is not None:
        raise CheckpointError(f"{file} holds {other}; single files of {_titles()} are unpacked")
    kind = next((kind for kind in KINDS if any(holds(part.prefix) for part in kind.texts)), None)
    texts = {part.title: part.prefix for part in (kind or KINDS[0]).texts}
    missing = {part: prefix for part, prefix in {"UNet": UNET, "VAE": VAE, **texts}.items() if not holds(prefix)}
    if missing or kind is None:
        lone = lone_part(names) if len(missing) > 1 else None
        part, prefix = next(iter(missing.items()))
        held = f"holds {lone}" if lone else f"holds no {part}, no name begins with {prefix}"
        raise CheckpointError(f"{file} {held}: give the file of a whole model, {_titles()}")
    return kind


def _titles() -> str:
    *others, last = (kind.title for kind in KINDS)
    return f"{', '.join(others)} or {last}"


def _is_ambiguous(kind: Kind, model: _File) -> bool:
    """Return whether the prediction must be found in the file: Stable Diffusion 2, except in-painting, may use v."""
    first = model.tensors.get(f"{UNET}input_blocks.0.0.weight")
    return kind.predicts_both and first is not None and first.ndim > 1 and first.shape[1] == 4


def _config(kind: Kind, model: _File, trained: Trained) -> ModelConfig:
    try:
        first, *others = (clip_config(_clip_shapes(model, part), part.open_clip, part.pooled) for part in kind.texts)
        second = next(iter(others), None)
        vae = vae_config(model.shapes(VAE), kind.scaling_factor)
        large = kind.predicts_both and trained.prediction == "v_prediction"
        size = trained_size(model.metadata, vae.downscale) or (_SIZE_OF_V if large else kind.size)
        unet = unet_config(model.shapes(UNET), size, None if second is None else second["projection_dim"])
        config = ModelConfig(first, unet, vae, trained.schedule, text_encoder_2=second)
        if second is not None:
            config = replace(config, method="euler", zeros_for_empty=True)
        config.check()
    except (CheckpointError, ConfigError) as error:
        raise CheckpointError(f"{model.path}: {error}") from error
    return config


def _clip_shapes(model: _File, part: Text) -> Shapes:
    """Return the shapes of CLIP's tensors without the prefix ``text_model.``, which older files do not have."""
    return {name.removeprefix("text_model."): shape for name, shape in model.shapes(part.prefix).items()}


def _converted(model: _File, kind: Kind, folder: str, config: ModelConfig) -> tuple[Tensors, set[str]]:
    """Return the tensors of a folder under diffusers' names, and the names in the file that they come from.

    Raises:
        CheckpointError: tensors are missing, have another shape, or are quantized.
    """
    made: Tensors = {}
    used: set[str] = set()
    of_text = folder in [part.folder for part in kind.texts]
    for component in (row for row in family_of(config).components if row.folder == folder):
        module, own = module_of(component, config), Tensors()
        for name, (stored_as, third) in sources(component, module, kind, config):
            source = next((one for one in stored_as if one in model.tensors), None)
            if source is None:
                continue
            tensor = model.tensors[source]
            if not is_weight(tensor):
                raise CheckpointError(
                    f"{model.path} stores {shown(source)} as {str(tensor.dtype).removeprefix('torch.')}: give the file "
                    "from before quantization"
                )
            used.update(stored_as)
            own[name] = shaped(tensor, source, third, module.get_parameter(name))
        expected, stored = (
            {name: tuple(tensor.shape) for name, tensor in tensors}
            for tensors in (module.named_parameters(), own.items())
        )
        if found := difference(component, expected, stored):
            raise CheckpointError(f"{model.path}:\n{found}")
        for name, tensor in own.items():
            start = "text_model." if of_text and not name.startswith("text_projection.") else ""
            # A copy, because safetensors cannot save one tensor with two names.
            made[start + name] = tensor.clone(memory_format=torch.contiguous_format)
    return made, used


def _refuse_the_rest(model: _File, kind: Kind, used: set[str], config: ModelConfig) -> None:
    """Raise CheckpointError for tensors that no module has, because the config then does not describe the file."""
    counts = [int(text.get("num_hidden_layers", 0)) for _, _, text in config.text_encoders]
    layers = {part.prefix: count for part, count in zip(kind.texts, counts, strict=True)}
    rest = [
        name
        for name in model.tensors
        if name.startswith((UNET, VAE, *layers)) and name not in used
        if not name.startswith(_LEFT_OUT) and not name.endswith(_LEFT_OUT_ENDS)
        if not any(_is_after(name, prefix, count) for prefix, count in layers.items())
    ]
    if rest:
        lines = [
            f"{model.path}: {len(rest)} of its tensors are not part of {kind.title} with these shapes; give --config "
            "FOLDER:"
        ]
        raise CheckpointError("\n    ".join([*lines, *capped([shown(name) for name in rest])]))


def _is_after(name: str, prefix: str, layers: int) -> bool:
    layer = _LAYER.match(name.removeprefix(prefix)) if name.startswith(prefix) else None
    return layer is not None and int(layer[1]) >= layers


def _check_tokenizer(folder: Path, encoder: str, text: Mapping[str, object]) -> None:
    present = [name for name in ("tokenizer.json", "vocab.json", "merges.txt") if (folder / name).is_file()]
    if len(present) < 2 and "tokenizer.json" not in present:
        raise CheckpointError(f"{folder} holds no tokenizer: give a folder with CLIP's vocab.json and merges.txt")
    check_tokenizer(folder)
    check_vocabulary(folder, encoder, text)


def _write_tokenizer(source: Path, folder: Path, part: Text) -> None:
    copy_tokenizer(source, folder)
    if not part.open_clip:
        return
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        known = read_json(folder / name) if (folder / name).is_file() else {}
        write_json(folder / name, {**known, "pad_token": _OPEN_CLIP_PAD})
