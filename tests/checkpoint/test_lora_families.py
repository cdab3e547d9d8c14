"""LoRAs of SDXL and of transformers, fused to the weights that diffusers' own reading of the same file makes."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from md_export.checkpoint import open_checkpoint
from md_export.checkpoint.derived import adapted
from md_export.checkpoint.lora import changes_of, open_lora
from md_export.checkpoint.modules import build_on_meta
from md_export.checkpoint.single_file_parts import UNET
from md_export.errors import CheckpointError
from md_export.models.families import component_of
from md_export.spec.loras import Lora
from single_file import unet_name

RANK, ALPHA = 2, 3.0
PARTS = ("unet", "text_encoder", "text_encoder_2")
# What kohya's trainer changes: attention and feed-forward, with its convolutions of SDXL's UNet, too.
TRAINED = re.compile(
    r".*\.(to_[qkv]|to_out\.0|ff\.net\.0\.proj|ff\.net\.2|conv1|conv2|conv|time_emb_proj|proj_in)"
    r"|encoder\.layers\.[01]\..*(_proj|fc[12])|text_projection|add_embedding\.linear_1"
)
Changes = dict[tuple[str, str], Tensor]
Halves = dict[tuple[str, str], tuple[Tensor, Tensor]]


def modules_of(folder: Path, parts: tuple[str, ...]) -> dict[str, nn.Module]:
    config = open_checkpoint(folder).config
    return {part: build_on_meta(component_of(config, part), config) for part in parts}


def halves_of(modules: Mapping[str, nn.Module]) -> Halves:
    """Random ``down`` and ``up`` for each layer that trainers change, by component and path."""
    generator, made = torch.Generator().manual_seed(0), {}
    for part, module in modules.items():
        for path, layer in module.named_modules():
            if TRAINED.fullmatch(path) and isinstance(layer, (nn.Linear, nn.Conv2d)):
                out, given, *kernel = layer.weight.shape
                down = torch.randn(RANK, given, *kernel, generator=generator)
                made[part, path] = down, torch.randn(out, RANK, *[1] * len(kernel), generator=generator)
    return made


def kohya(part: str, path: str, sgm: bool = True) -> str:
    if part == "unet" and sgm:
        path = unet_name(f"{path}.", (True, True, False)).removeprefix(UNET)[:-1]
    elif part != "unet":
        path = path if path == "text_projection" else f"text_model.{path}"
    start = {"unet": "unet", "text_encoder": "te1", "text_encoder_2": "te2"}[part]
    return f"lora_{start}_{path.replace('.', '_')}"


def peft(part: str, path: str) -> str:
    return f"{part}.{path}" if part == "unet" or path == "text_projection" else f"{part}.text_model.{path}"


def written(folder: Path, style: str, halves: Halves) -> Path:
    tensors: dict[str, Tensor] = {}
    for (part, path), (down, up) in halves.items():
        if style == "peft":
            name = peft(part, path)
            tensors |= {f"{name}.lora_A.weight": down * ALPHA / RANK, f"{name}.lora_B.weight": up}
        else:
            name = kohya(part, path, style == "sgm")
            tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
            tensors[f"{name}.alpha"] = torch.tensor(ALPHA)
    file = folder / "style.safetensors"
    save_file(tensors, file)
    return file


def read_by_diffusers(file: Path, folder: Path) -> Changes:
    """The change of each weight, by the names that diffusers converts those in the file to."""
    diffusers: Any = pytest.importorskip("diffusers", reason="needs the extra diffusers")
    utils: Any = importlib.import_module("diffusers.utils.state_dict_utils")
    config = SimpleNamespace(**diffusers.UNet2DConditionModel.load_config(folder / "unet"))
    reader: Any = importlib.import_module("diffusers.loaders.lora_pipeline").StableDiffusionXLLoraLoaderMixin
    tensors, alphas = reader.lora_state_dict(load_file(file), unet_config=config)
    assert set(map(float, (alphas or {}).values())) <= {ALPHA}
    made = {}
    for part in PARTS:
        own = {name.removeprefix(f"{part}."): half for name, half in tensors.items() if name.startswith(f"{part}.")}
        own = utils.convert_unet_state_dict_to_peft(own) if part == "unet" else _peft_of_text(own)
        for name in (name for name in own if name.endswith(".lora_A.weight")):
            path = name.removesuffix(".lora_A.weight")
            delta = torch.einsum("or,ri->oi", own[f"{path}.lora_B.weight"].flatten(1), own[name].flatten(1))
            made[part, path.removeprefix("text_model.")] = delta * (ALPHA / RANK if alphas else 1)
    return made


def _peft_of_text(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    utils: Any = importlib.import_module("diffusers.utils.state_dict_utils")
    found: dict[str, Tensor] = utils.convert_state_dict_to_peft(utils.convert_state_dict_to_diffusers(tensors))
    return found


def differing(found: Changes, wanted: Changes) -> set[tuple[str, str]]:
    assert found.keys() == wanted.keys()
    return {layer for layer, delta in found.items() if not torch.allclose(delta, wanted[layer], atol=1e-4)}


@pytest.mark.seen("LoRA of SDXL by kohya (SGM's names or diffusers') or peft", "the changes that diffusers reads in it")
@pytest.mark.parametrize("style", ["sgm", "kohya", "peft"])
def test_sdxl(xl_checkpoint: Path, tmp_path: Path, style: str) -> None:
    """Of both text encoders and the UNet; and a change that is another layer's is noticed."""
    modules = modules_of(xl_checkpoint, PARTS)
    halves = halves_of(modules)
    if style == "kohya":
        # diffusers 0.42 drops the number of this layer in kohya's form of its own names.
        del halves["unet", "add_embedding.linear_1"]
    file = written(tmp_path, style, halves)
    lora = open_lora(Lora(file, file.name, 1.0 if style == "peft" else None))
    made = [(part, change) for part, module in modules.items() for change in changes_of(lora, part, module)]
    found = {
        (part, change.module): change.delta(change.scale * change.factor).float().flatten(1) for part, change in made
    }
    wanted = read_by_diffusers(file, xl_checkpoint)
    assert wanted.keys() == halves.keys()
    assert differing(found, wanted) == set()
    query, key = (("text_encoder_2", f"encoder.layers.1.self_attn.{name}_proj") for name in "qk")
    assert differing(found, {**wanted, query: wanted[key], key: wanted[query]}) == {query, key}


@pytest.mark.seen("LoRA of PixArt or DiT by peft, kohya or diffusers", "fused into the transformer")
@pytest.mark.parametrize("start", ["base_model.model.", "transformer.", "lora_transformer_", "lora_unet_"])
def test_a_transformer(pixart_checkpoint: Path, tmp_path: Path, start: str) -> None:
    """Tools call the denoiser a UNet, or do not name it."""
    halves = halves_of(modules_of(pixart_checkpoint, ("transformer",)))
    assert len(halves) == 2 * 10
    names = {path: start + (path.replace(".", "_") if start.endswith("_") else path) for _, path in halves}
    ends = ("lora_down.weight", "lora_up.weight") if start.endswith("_") else ("lora_A.weight", "lora_B.weight")
    tensors: dict[str, Tensor] = {}
    for (_, path), (down, up) in halves.items():
        tensors |= {f"{names[path]}.{ends[0]}": down, f"{names[path]}.{ends[1]}": up}
    file = tmp_path / "style.safetensors"
    save_file(tensors, file, {"lora_adapter_metadata": json.dumps({"r": RANK, "lora_alpha": RANK})})
    with adapted(pixart_checkpoint, (str(file),)) as folder:
        module = open_checkpoint(folder).module("transformer")
    before = open_checkpoint(pixart_checkpoint).module("transformer").state_dict()
    found = {
        ("transformer", name.removesuffix(".weight")): value - before[name]
        for name, value in module.state_dict().items()
        if not torch.equal(value, before[name])
    }
    wanted = {layer: up @ down for layer, (down, up) in halves.items()}
    assert differing(found, wanted) == set()
    assert differing(found, {layer: 2 * delta for layer, delta in wanted.items()}) == wanted.keys()


def test_a_part_that_the_family_lacks(dit_checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "style.safetensors"
    names = ("lora_te_text_model_encoder_layers_0_mlp_fc1", "lora_unet_transformer_blocks_0_attn1_to_q")
    save_file({f"{n}.lora_{half}.weight": torch.ones(2, 2) for n in names for half in ("down", "up")}, file)
    said = "^style.safetensors changes text_encoder, which"
    with adapted(dit_checkpoint, (str(file),)) as folder, pytest.raises(CheckpointError, match=said):
        open_checkpoint(folder).check()
