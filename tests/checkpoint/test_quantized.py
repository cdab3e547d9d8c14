"""Weights that another tool has quantized: one line that says so, in folders, single files and LoRAs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cli.test_cli import fails, md_export
from md_export.checkpoint import open_checkpoint
from md_export.checkpoint.lora import open_lora
from md_export.errors import CheckpointError, ConfigError
from md_export.spec.loras import Lora
from mutations import edit_json

SCALE = torch.tensor(0.5)
# What stands beside a weight, how the weight is stored, and what is said.
STORED: dict[str, tuple[str, torch.dtype, str]] = {
    "scaled float8": ("time_embed.scale_weight", torch.float8_e4m3fn, r"in float8 with scales beside them \(ComfyUI\)"),
    "bitsandbytes 4 bit": ("time_embed.weight.absmax", torch.uint8, "as bitsandbytes quantizes them"),
    "bitsandbytes 8 bit": ("time_embed.SCB", torch.int8, "as bitsandbytes quantizes them"),
    "AWQ": ("time_embed.qweight", torch.int32, "as AWQ, GPTQ or SVDQuant quantize them"),
}


@pytest.mark.seen(
    "scaled float8, bitsandbytes, AWQ, GPTQ and SVDQuant weights", "named, with a line that asks for the float weights"
)
@pytest.mark.parametrize("case", STORED)
def test_quantized_weights_are_named(stable_checkpoint: Path, tmp_path: Path, case: str) -> None:
    name, dtype, said = STORED[case]
    folder = Path(shutil.copytree(stable_checkpoint, tmp_path / "model"))
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors: dict[str, Tensor] = load_file(file)
    open_checkpoint(folder).module("unet")
    tensors["conv_in.weight"] = tensors["conv_in.weight"].to(dtype)
    save_file({**tensors, name: SCALE}, file)
    with pytest.raises(CheckpointError, match=f"safetensors holds weights {said}, such as {name}: give the checkpoint"):
        open_checkpoint(folder).module("unet")
    one = tmp_path / "one.safetensors"
    save_file({f"model.diffusion_model.{name}": SCALE}, one)
    fails(md_export("unpack", one, "-o", tmp_path / "out"), 1, "one.safetensors holds weights")


@pytest.mark.seen("`quantization_config` in a component's config", "refused; names the method")
@pytest.mark.parametrize("component", ["unet", "text_encoder", "vae"])
def test_a_quantized_component_is_named_by_its_config(stable_checkpoint: Path, tmp_path: Path, component: str) -> None:
    folder = Path(shutil.copytree(stable_checkpoint, tmp_path / "model"))
    file = folder / component / "config.json"
    edit_json(file, lambda config: config.update(quantization_config=None))
    open_checkpoint(folder)
    edit_json(file, lambda config: config.update(quantization_config={"quant_method": "bitsandbytes"}))
    said = f"{component}/config.json: quantization_config says that the weights are quantized by bitsandbytes: give"
    with pytest.raises(ConfigError, match=said):
        open_checkpoint(folder)


@pytest.mark.seen("GGUF files", "refused; asks for the `.safetensors`")
def test_gguf(stable_checkpoint: Path, tmp_path: Path) -> None:
    """Alone, in a folder, as a LoRA, and under another name."""
    folder = Path(shutil.copytree(stable_checkpoint, tmp_path / "model"))
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="holds no weights"):
        open_checkpoint(folder)
    file, said = folder / "unet" / "model-Q4_0.gguf", "Q4_0.gguf is a GGUF file, which is not supported: give the .saf"
    file.write_bytes(b"GGUF" + bytes(60))
    with pytest.raises(CheckpointError, match=said):
        open_checkpoint(folder)
    fails(md_export("unpack", file, "-o", tmp_path / "out"), 1, said)
    with pytest.raises(CheckpointError, match="style is a GGUF file"):
        open_lora(Lora(file, "style"))
    renamed = shutil.copy(file, tmp_path / "model.ckpt")
    fails(md_export("unpack", renamed, "-o", tmp_path / "out"), 1, "model.ckpt is a GGUF file")
