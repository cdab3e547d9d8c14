"""A small Stable Diffusion as people share one: a single file, a LoRA of kohya's form, and CLIP's tokenizer beside it.

    python tests/fine_tunes.py FOLDER

The weights are random; the tutorials' commands run on it.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from md_export.checkpoint import build_on_meta, open_checkpoint
from md_export.checkpoint.architectures import write_checkpoint
from md_export.models.config import ModelConfig
from md_export.models.diffusers_unet import DiffusersUNetConfig
from md_export.models.families import component_of
from md_export.models.vae import VAEConfig
from single_file import renamed, text_name, unet_name, vae_name
from small_models import STABLE

RANK = 4
# As published models are: 32 groups, and 8 heads in the UNet, which a single file does not tell.
FINE_TUNED = ModelConfig(
    text_encoder={**STABLE.text_encoder, "num_attention_heads": 1},
    denoiser=DiffusersUNetConfig(
        sample_size=16,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=64,
    ),
    vae=VAEConfig(latent_channels=4, block_out_channels=(32, 64), layers_per_block=1, scaling_factor=0.18215),
)
SIZE = {"modelspec.resolution": "32x32"}


def write_fine_tune(folder: Path) -> Path:
    """Write ``my-finetune.safetensors``, ``crayon.safetensors`` and ``clip-tokenizer``."""
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = Path(scratch) / "checkpoint"
        write_checkpoint(checkpoint, FINE_TUNED, seed=7)
        return _shared(checkpoint, folder)


def _shared(checkpoint: Path, folder: Path) -> Path:
    names: dict[str, Callable[[str], str]] = {
        "text_encoder/model": text_name,
        "unet/diffusion_pytorch_model": partial(unet_name, with_attention=(True, False)),
        "vae/diffusion_pytorch_model": partial(vae_name, levels=2),
    }
    one: dict[str, Tensor] = {}
    for file, rename in names.items():
        one |= renamed(load_file(checkpoint / f"{file}.safetensors"), rename)
    one = {name: tensor.contiguous().clone() for name, tensor in one.items()}
    save_file(one, folder / "my-finetune.safetensors", SIZE)
    save_file(crayon(checkpoint), folder / "crayon.safetensors")
    shutil.copytree(checkpoint / "tokenizer", folder / "clip-tokenizer")
    return folder


def crayon(checkpoint: Path) -> dict[str, Tensor]:
    """A LoRA on every attention of the UNet, in kohya's names."""
    opened, noise = open_checkpoint(checkpoint), torch.Generator().manual_seed(0)
    tensors = {}
    for path, layer in build_on_meta(component_of(opened.config, "unet"), opened.config).named_modules():
        if isinstance(layer, torch.nn.Linear) and path.endswith(("to_q", "to_k", "to_v", "to_out.0")):
            name = f"lora_unet_{path.replace('.', '_')}"
            tensors[f"{name}.lora_down.weight"] = 0.1 * torch.randn(RANK, layer.in_features, generator=noise)
            tensors[f"{name}.lora_up.weight"] = 0.1 * torch.randn(layer.out_features, RANK, generator=noise)
            tensors[f"{name}.alpha"] = torch.tensor(float(RANK))
    return tensors


if __name__ == "__main__":
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    write_fine_tune(out)
