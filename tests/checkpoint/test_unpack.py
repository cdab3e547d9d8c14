"""Single files of Stable Diffusion 1 as folders: the same tensors, and one clear error for all else."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cli.test_cli import fails, md_export
from md_export.checkpoint import open_checkpoint
from md_export.checkpoint.single_file import TEXT, UNET, VAE, unpack
from md_export.errors import CheckpointError, OutputError
from single_file import renamed, text_name, unet_name, vae_name
from small_models import STABLE

FILES = {
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "text_encoder": "text_encoder/model.safetensors",
}


@pytest.fixture
def tensors(stable_checkpoint: Path) -> dict[str, Tensor]:
    """All of the small model, with what such files hold besides."""
    names: dict[str, Callable[[str], str]] = {
        "unet": partial(unet_name, with_attention=(True, False)),
        "vae": partial(vae_name, levels=2),
        "text_encoder": text_name,
    }
    made: dict[str, Tensor] = {"alphas_cumprod": torch.ones(1000), "model_ema.num_updates": torch.tensor(3).int()}
    made[f"{TEXT}text_model.embeddings.position_ids"] = torch.arange(77)[None]
    for part, file in FILES.items():
        made |= renamed(load_file(stable_checkpoint / file), names[part])
    return made


@pytest.fixture
def tokenizer(stable_checkpoint: Path) -> Path:
    return stable_checkpoint / "tokenizer"


def write(tensors: dict[str, Tensor], file: Path) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
    return file


def test_all_tensors_arrive(
    tensors: dict[str, Tensor], stable_checkpoint: Path, tokenizer: Path, tmp_path: Path
) -> None:
    file = write(tensors, tmp_path / "model.safetensors")
    unpack(file, tokenizer, tmp_path / "out", STABLE)
    for part, name in FILES.items():
        wanted, found = load_file(stable_checkpoint / name), load_file(tmp_path / "out" / name)
        found = {key.removeprefix("text_model."): tensor for key, tensor in found.items()}
        assert found.keys() == wanted.keys(), part
        assert all(torch.equal(found[key], wanted[key]) for key in wanted), part
    assert open_checkpoint(tmp_path / "out").config == open_checkpoint(stable_checkpoint).config


def test_in_painting_keeps_its_channels(tensors: dict[str, Tensor], tokenizer: Path, tmp_path: Path) -> None:
    tensors[f"{UNET}input_blocks.0.0.weight"] = torch.zeros(32, 9, 3, 3)
    unpack(write(tensors, tmp_path / "model.safetensors"), tokenizer, tmp_path / "out", STABLE)
    assert open_checkpoint(tmp_path / "out").config.inpaints


def test_what_is_missing_or_too_much_is_named(tensors: dict[str, Tensor], tokenizer: Path, tmp_path: Path) -> None:
    del tensors[f"{UNET}out.2.bias"]
    tensors[f"{UNET}time_embed.0.bias"] = torch.zeros(3)
    with pytest.raises(
        CheckpointError, match=r"(?s)missing:\s+conv_out\.bias.*time_embedding\.linear_1\.bias: stored \[3\]"
    ):
        unpack(write(tensors, tmp_path / "model.safetensors"), tokenizer, tmp_path / "out", STABLE)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("conditioner.embedders.0.x", "holds Stable Diffusion XL"),
        ("cond_stage_model.model.x", "holds Stable Diffusion 2"),
        (f"{VAE}x", "holds no UNet, no name begins with model.diffusion_model."),
    ],
)
def test_other_files_are_refused(name: str, said: str, tokenizer: Path, tmp_path: Path) -> None:
    file = write({name: torch.zeros(1)}, tmp_path / "model.safetensors")
    fails(md_export("unpack", file, "--tokenizer", tokenizer, "-o", tmp_path / "out"), 1, said)


def test_names_that_only_look_right(tokenizer: Path, tmp_path: Path) -> None:
    names = (f"{UNET}input_blocks.x", f"{VAE}mid.block_9", f"{TEXT}text_model.x", f"{UNET}middle_block.7.conv")
    file = write({name: torch.zeros(1) for name in names}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError):
        unpack(file, tokenizer, tmp_path / "out")


def test_what_else_is_wrong(
    tensors: dict[str, Tensor], stable_checkpoint: Path, tokenizer: Path, tmp_path: Path
) -> None:
    file = write(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"md-export unpack \S+model.safetensors --tokenizer DIR -o DIR"):
        open_checkpoint(file)
    with pytest.raises(CheckpointError, match="holds no tokenizer"):
        unpack(file, stable_checkpoint / "unet", tmp_path / "out", STABLE)
    with pytest.raises(CheckpointError, match=r"is no \.safetensors file"):
        unpack(tmp_path / "model.ckpt", tokenizer, tmp_path / "out")
    with pytest.raises(OutputError):
        unpack(file, tokenizer, tmp_path, STABLE)
