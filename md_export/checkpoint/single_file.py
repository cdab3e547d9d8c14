"""One file of a Stable Diffusion, as its authors and most tools write it → a checkpoint folder in diffusers' layout."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from safetensors.torch import save_file
from torch import Tensor, nn

from md_export.checkpoint import open_checkpoint
from md_export.checkpoint.architectures import FILES, config_files
from md_export.checkpoint.configs import check_vocabulary
from md_export.checkpoint.files import capped, check_tokenizer, copy_tokenizer, read_json, shown
from md_export.checkpoint.modules import MAX_TENSORS, build_on_meta, difference
from md_export.checkpoint.original_names import open_clip_name, original_names, original_vae_name
from md_export.checkpoint.random_tokenizer import write_json
from md_export.checkpoint.single_file_config import Shapes, clip_config, unet_config, vae_config
from md_export.checkpoint.single_file_kinds import lone_part, other_model
from md_export.checkpoint.single_file_schedule import Trained, trained_for, trained_size
from md_export.checkpoint.weights import check_stored, is_weight, read_metadata, stored_values
from md_export.errors import CheckpointError
from md_export.models.config import ModelConfig
from md_export.models.families import family_of
from md_export.models.graph import Component
from md_export.system.files import refuse_existing, require_space, staging

Tensors = dict[str, Tensor]
# A tensor's name in the file, and which third of it is meant.
Source = tuple[str, int | None]

SUFFIXES: Final = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
UNET: Final = "model.diffusion_model."
VAE: Final = "first_stage_model."
TEXT: Final = "cond_stage_model.transformer."
OPEN_CLIP: Final = "cond_stage_model.model."
TOKENIZER_OF: Final = "https://huggingface.co/openai/clip-vit-large-patch14"
# What such files hold beside what is used: averages for training, losses, positions, CLIP's other half.
_LEFT_OUT: Final = ("model_ema.", f"{VAE}loss.", f"{VAE}model_ema.")
_LEFT_OUT_ENDS: Final = (".position_ids", ".logit_scale", ".text_projection", ".text_projection.weight", ".attn_mask")
# Text encoders are used up to a layer before the last.
_LAYER: Final = re.compile(r"(?:transformer\.resblocks|(?:text_model\.)?encoder\.layers)\.(\d{1,4})\.")
# OpenCLIP's tokenizer fills with id 0, CLIP's with its end.
_OPEN_CLIP_PAD: Final = "!"


@dataclass(frozen=True)
class _Kind:
    """A model that people have as one file.

    Attributes:
        text: where its text encoder's names begin.
        tells: some predict epsilon and some v.
    """

    title: str
    text: str
    tells: bool
    scaling_factor: float = 0.18215


_KINDS: Final = (
    _Kind("Stable Diffusion 1", TEXT, tells=False),
    _Kind("Stable Diffusion 2", OPEN_CLIP, tells=True),
)
# Sides of latents: of Stable Diffusion 2 that predicts v, and of all others.
_SIZE_OF_V: Final = 96
_SIZE: Final = 64


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
    """Write ``file`` as a folder, its tensors in the dtype that they have; return what it holds, in words.

    Args:
        file: ``.safetensors``, or a file of torch's, of a whole model: UNet, VAE and text encoder.
        tokenizer: folder with CLIP's ``vocab.json`` and ``merges.txt``, which such files do not hold.
        out: folder to create.
        config: what the file holds; read from the shapes of its tensors by default.
        prediction: ``epsilon`` or ``v_prediction``; what the file says of itself by default.

    Raises:
        CheckpointError: it cannot be read, is of another model, or lacks a part.
        MissingExtraError: diffusers, whose UNet it is, is not installed.
        OutputError: ``out`` exists, or cannot be written whole.
    """
    refuse_existing(out)
    model = _read(file)
    kind = _kind_of(model)
    words = kind.title
    if config is None:
        trained = trained_for(file, model.tensors, model.metadata, _tells(kind, model), prediction)
        config = _config(kind, model, trained)
        zero = " with zero terminal SNR" if trained.zero_snr else ""
        height, width = config.picture_shape
        words = f"{kind.title}, {width}×{height}, predicts {trained.prediction}{zero} ({trained.why})"
    if tokenizer is None:
        raise CheckpointError(
            f"{file} holds no tokenizer: give a folder with CLIP's vocab.json and merges.txt, --tokenizer DIR; they "
            f"are in {TOKENIZER_OF}"
        )
    _check_tokenizer(tokenizer, config)
    require_space(out, sum(tensor.nbytes for tensor in model.tensors.values()))
    with staging(out) as folder:
        for name, content in config_files(config).items():
            write_json(folder / name, content)
        used: set[str] = set()
        for name in FILES:
            part, sources = _converted(model, kind, name, config)
            used |= sources
            if part:
                save_file(part, folder / name / FILES[name], metadata={"format": "pt"})
        _refuse_the_rest(model, kind, used, config)
        _write_tokenizer(tokenizer, folder / "tokenizer", kind)
        open_checkpoint(folder).check()
    return words


def _read(file: Path) -> _File:
    if file.suffix not in SUFFIXES or not file.is_file():
        raise CheckpointError(f"{file} is no file of a model: give one that ends in {', '.join(SUFFIXES)}")
    values = stored_values(file)
    metadata = read_metadata(file) if file.suffix == ".safetensors" else {}
    step, nested = values.get("global_step"), values.get("state_dict")
    # PyTorch Lightning's.
    values = nested if isinstance(nested, dict) else values
    if isinstance(step, int):
        metadata["global_step"] = str(step)
    tensors = {name: value for name, value in values.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if len(tensors) > MAX_TENSORS:
        raise CheckpointError(f"{file} holds {len(tensors):,} tensors; at most {MAX_TENSORS:,} are read: replace it")
    for name, tensor in tensors.items():
        check_stored(tensor, name, str(file))
    return _File(file, tensors, metadata)


def _kind_of(model: _File) -> _Kind:
    names, file = model.tensors.keys(), model.path
    other = other_model(names)
    if other is not None:
        raise CheckpointError(f"{file} holds {other}; single files of {_titles()} are unpacked")
    kind = next((kind for kind in _KINDS if any(name.startswith(kind.text) for name in names)), None)
    parts = {"UNet": UNET, "VAE": VAE, "text encoder": kind.text if kind else TEXT}
    missing = [part for part, prefix in parts.items() if not any(name.startswith(prefix) for name in names)]
    if missing or kind is None:
        lone = lone_part(names) if len(missing) > 1 else None
        held = f"holds {lone}" if lone else f"holds no {missing[0]}, no name begins with {parts[missing[0]]}"
        raise CheckpointError(f"{file} {held}: give the file of a whole model, {_titles()}")
    return kind


def _titles() -> str:
    return " or ".join(kind.title for kind in _KINDS)


def _tells(kind: _Kind, model: _File) -> bool:
    """Whether epsilon is no default: Stable Diffusion 2's in-painting models all predict it."""
    first = model.tensors.get(f"{UNET}input_blocks.0.0.weight")
    return kind.tells and first is not None and first.ndim > 1 and first.shape[1] == 4


def _config(kind: _Kind, model: _File, trained: Trained) -> ModelConfig:
    try:
        text = clip_config(_clip_shapes(model, kind), kind.text == OPEN_CLIP)
        vae = vae_config(model.shapes(VAE), kind.scaling_factor)
        large = kind.tells and trained.prediction == "v_prediction"
        size = trained_size(model.metadata, vae.downscale) or (_SIZE_OF_V if large else _SIZE)
        config = ModelConfig(text, unet_config(model.shapes(UNET), size), vae, trained.schedule)
        config.check()
    except CheckpointError as error:
        raise CheckpointError(f"{model.path}: {error}") from error
    return config


def _clip_shapes(model: _File, kind: _Kind) -> Shapes:
    """Older files leave out ``text_model.``."""
    return {name.removeprefix("text_model."): shape for name, shape in model.shapes(kind.text).items()}


def _converted(model: _File, kind: _Kind, folder: str, config: ModelConfig) -> tuple[Tensors, set[str]]:
    """Return the tensors of a folder under diffusers' names, and the names in the file that they come from.

    Raises:
        CheckpointError: tensors are missing, of another shape or quantized.
    """
    made: Tensors = {}
    used = set()
    start = "text_model." if folder == "text_encoder" else ""
    for component in (row for row in family_of(config).components if row.folder == folder):
        module, own = build_on_meta(component, config), Tensors()
        for name, (source, third) in _sources(component, module, kind, config):
            tensor = model.tensors.get(source, model.tensors.get(source.replace(f"{TEXT}text_model.", TEXT)))
            if tensor is None:
                continue
            if not is_weight(tensor):
                raise CheckpointError(
                    f"{model.path} stores {shown(source)} as {str(tensor.dtype).removeprefix('torch.')}: give the file "
                    "as it was before quantization"
                )
            used |= {source, source.replace(f"{TEXT}text_model.", TEXT)}
            own[name] = _shaped(tensor, third, module.get_parameter(name))
        expected, stored = (
            {name: tuple(tensor.shape) for name, tensor in tensors}
            for tensors in (module.named_parameters(), own.items())
        )
        if found := difference(component, expected, stored):
            raise CheckpointError(f"{model.path}:\n{found}")
        # Copies: two names of one tensor cannot be saved.
        made |= {start + name: tensor.clone().contiguous() for name, tensor in own.items()}
    return made, used


def _sources(component: Component, module: nn.Module, kind: _Kind, config: ModelConfig) -> Iterator[tuple[str, Source]]:
    """Yield each tensor's name in diffusers and where the file has it."""
    names = [name for name, _ in module.named_parameters()]
    if component.folder == "unet":
        paths = original_names(path for path, _ in module.named_modules())
        for name in names:
            path, _, leaf = name.rpartition(".")
            yield name, (f"{UNET}{paths.get(path, path)}.{leaf}", None)
    elif component.folder == "vae":
        levels = config.vae.downscale.bit_length()
        for name in names:
            yield name, (VAE + original_vae_name(name, levels), None)
    else:
        for name in names:
            found = open_clip_name(name) if kind.text == OPEN_CLIP else (f"text_model.{name}", None)
            if found is not None:
                yield name, (kind.text + found[0], found[1])


def _shaped(tensor: Tensor, third: int | None, wanted: Tensor) -> Tensor:
    """Return a third of a tensor that holds three; a VAE's attention as linear layers, which was 1×1 convolutions."""
    if third is not None and tensor.ndim and tensor.shape[0] == 3 * wanted.shape[0]:
        tensor = tensor.chunk(3)[third]
    ones = tensor.shape[wanted.ndim :]
    return tensor.flatten(wanted.ndim - 1) if wanted.ndim == 2 and ones and set(ones) == {1} else tensor


def _refuse_the_rest(model: _File, kind: _Kind, used: set[str], config: ModelConfig) -> None:
    """Raise for tensors of the three parts that no module has: then the config is another than the file's."""
    layers = int(config.text_encoder.get("num_hidden_layers", 0))
    rest = [
        name
        for name in model.tensors
        if name.startswith((UNET, VAE, kind.text)) and name not in used
        if not name.startswith(_LEFT_OUT) and not name.endswith(_LEFT_OUT_ENDS)
        if not ((layer := _LAYER.match(name.removeprefix(kind.text))) and int(layer[1]) >= layers)
    ]
    if rest:
        lines = [
            f"{model.path}: {len(rest)} of its tensors are in no {kind.title} of these shapes; give --config FOLDER:"
        ]
        raise CheckpointError("\n    ".join([*lines, *capped([shown(name) for name in rest])]))


def _check_tokenizer(folder: Path, config: ModelConfig) -> None:
    present = [name for name in ("tokenizer.json", "vocab.json", "merges.txt") if (folder / name).is_file()]
    if len(present) < 2 and "tokenizer.json" not in present:
        raise CheckpointError(f"{folder} holds no tokenizer: give a folder with CLIP's vocab.json and merges.txt")
    check_tokenizer(folder)
    check_vocabulary(folder, "text_encoder", config.text_encoder)


def _write_tokenizer(source: Path, folder: Path, kind: _Kind) -> None:
    copy_tokenizer(source, folder)
    if kind.text != OPEN_CLIP:
        return
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        known = read_json(folder / name) if (folder / name).is_file() else {}
        write_json(folder / name, {**known, "pad_token": _OPEN_CLIP_PAD})
