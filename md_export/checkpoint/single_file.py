"""One file of Stable Diffusion 1, as its authors and most tools write it → a checkpoint folder in diffusers' layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from safetensors.torch import save_file
from torch import Tensor

from md_export.checkpoint import open_checkpoint
from md_export.checkpoint.architectures import FILES, arch_config, config_files, write_json
from md_export.checkpoint.files import copy_tokenizer
from md_export.checkpoint.weights import read_tensors
from md_export.errors import CheckpointError, one_line
from md_export.models.config import ModelConfig
from md_export.models.diffusers_unet import from_diffusers
from md_export.system.files import refuse_existing, require_space, staging

Tensors = dict[str, Tensor]
Convert = Callable[[Tensors], Tensors]

UNET: Final = "model.diffusion_model."
VAE: Final = "first_stage_model."
TEXT: Final = "cond_stage_model.transformer."
_FIRST_CONV: Final = f"{UNET}input_blocks.0.0.weight"
# Where other models keep their text encoders.
_OTHERS: Final[Mapping[str, str]] = {
    "conditioner.embedders.": "Stable Diffusion XL",
    "cond_stage_model.model.": "Stable Diffusion 2",
    "text_encoders.": "Stable Diffusion 3",
}


def unpack(file: Path, tokenizer: Path, out: Path, config: ModelConfig | None = None) -> None:
    """Write ``file`` as a folder, its tensors in the dtype that they have.

    Args:
        file: ``.safetensors`` of a whole model: UNet, VAE and text encoder.
        tokenizer: folder with CLIP's ``vocab.json`` and ``merges.txt``, which such files do not hold.
        out: folder to create.
        config: what the file holds; Stable Diffusion 1's by default, with the UNet's own number of input channels.

    Raises:
        CheckpointError: it cannot be read, is of another model, or lacks a part.
        MissingExtraError: diffusers, which knows the names, is not installed.
        OutputError: ``out`` exists, or cannot be written whole.
    """
    refuse_existing(out)
    tensors = read_tensors(_checked(file))
    _refuse_others(file, tensors)
    config = _with_channels(config or arch_config("sd15"), tensors)
    files = config_files(config)
    converters = _converters(files)
    require_space(out, file.stat().st_size)
    with staging(out) as folder:
        for name, content in files.items():
            write_json(folder / name, content)
        for name, (prefix, convert) in converters.items():
            part = _converted(file, tensors, prefix, convert)
            save_file(part, folder / name / FILES[name], metadata={"format": "pt"})
        _copy_tokenizer(tokenizer, folder / "tokenizer")
        open_checkpoint(folder).check()


def _checked(file: Path) -> Path:
    if file.suffix != ".safetensors" or not file.is_file():
        raise CheckpointError(f"{file} is no .safetensors file: others may hold code and are not unpacked; convert it")
    return file


def _refuse_others(file: Path, tensors: Tensors) -> None:
    for prefix, model in _OTHERS.items():
        if any(name.startswith(prefix) for name in tensors):
            raise CheckpointError(f"{file} holds {model}; only single files of Stable Diffusion 1 are unpacked")
    for prefix, part in ((UNET, "UNet"), (VAE, "VAE"), (TEXT, "text encoder")):
        if not any(name.startswith(prefix) for name in tensors):
            raise CheckpointError(
                f"{file} holds no {part}, no name begins with {prefix}: give the file of a whole Stable Diffusion 1"
            )


def _with_channels(config: ModelConfig, tensors: Tensors) -> ModelConfig:
    """In-painting models differ in the UNet's first convolution alone."""
    first = tensors.get(_FIRST_CONV)
    channels = config.denoiser.in_channels if first is None or first.ndim != 4 else first.shape[1]
    return replace(config, denoiser=replace(config.denoiser, in_channels=channels))


def _converters(files: Mapping[str, Mapping[str, object]]) -> dict[str, tuple[str, Convert]]:
    """By folder: what its tensors' names begin with, and diffusers' function that gives them diffusers' names."""
    library = from_diffusers("diffusers.loaders.single_file_utils", "single files are unpacked")
    return {
        "unet": (UNET, lambda own: library.convert_ldm_unet_checkpoint(own, files["unet/config.json"])),
        "vae": (VAE, lambda own: library.convert_ldm_vae_checkpoint(own, files["vae/config.json"])),
        "text_encoder": (TEXT, library.convert_ldm_clip_checkpoint),
    }


def _converted(file: Path, tensors: Tensors, prefix: str, convert: Convert) -> Tensors:
    own = {name: tensor for name, tensor in tensors.items() if name.startswith(prefix) and tensor.is_floating_point()}
    try:
        made = convert(own)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{file}: the tensors under {prefix} are not those of Stable Diffusion 1 ({one_line(error)}): "
            "give the file of a whole model"
        ) from error
    # Copies: two names of one tensor cannot be saved.
    return {name: tensor.clone().contiguous() for name, tensor in made.items()}


def _copy_tokenizer(source: Path, target: Path) -> None:
    present = [name for name in ("tokenizer.json", "vocab.json", "merges.txt") if (source / name).is_file()]
    if len(present) < 2 and "tokenizer.json" not in present:
        raise CheckpointError(f"{source} holds no tokenizer: give a folder with CLIP's vocab.json and merges.txt")
    copy_tokenizer(source, target)
