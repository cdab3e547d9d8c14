"""Single files as folders: tensors, configs and training are right, and one clear error for all else."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cli.test_cli import fails, md_export
from md_export.checkpoint import build_on_meta, open_checkpoint
from md_export.checkpoint.architectures import arch_config, write_checkpoint
from md_export.checkpoint.random_tokenizer import END
from md_export.checkpoint.single_file import unpack
from md_export.checkpoint.single_file_config import unet_config
from md_export.checkpoint.single_file_parts import OPEN_CLIP, TEXT, UNET, VAE
from md_export.errors import CheckpointError, OutputError
from md_export.models.config import ModelConfig
from md_export.models.diffusers_unet import DiffusersUNetConfig
from md_export.models.families import family_of
from md_export.models.tokenizers import tokenize
from md_export.models.vae import VAEConfig
from single_file import open_clip, renamed, text_name, unet_name, vae_name
from small_models import STABLE

FILES = {
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "text_encoder": "text_encoder/model.safetensors",
}
Tensors = dict[str, Tensor]


def unet_of(config: ModelConfig) -> DiffusersUNetConfig:
    assert isinstance(config.denoiser, DiffusersUNetConfig)
    return config.denoiser


# As published models are: 32 groups; heads of 64 in the text encoder; 8 heads in the UNet.
FIRST = ModelConfig(
    text_encoder={
        **STABLE.text_encoder,
        "num_attention_heads": 1,
        "projection_dim": 64,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
        "pad_token_id": 519,
    },
    denoiser=DiffusersUNetConfig(
        sample_size=64,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=64,
    ),
    vae=VAEConfig(latent_channels=4, block_out_channels=(32, 64), layers_per_block=1, scaling_factor=0.18215),
)
# Of Stable Diffusion 2: heads of 64, linear projections, depths that differ, no middle, as pruned ones have it.
SECOND = dataclasses.replace(
    FIRST,
    text_encoder={**FIRST.text_encoder, "hidden_act": "gelu", "pad_token_id": 0},
    denoiser=dataclasses.replace(
        unet_of(FIRST),
        block_out_channels=(64, 128),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        mid_block_type=None,
        transformer_layers_per_block=(1, 2),
        attention_head_dim=(1, 2),
        use_linear_projection=True,
    ),
)


def as_one(folder: Path, config: ModelConfig, second: bool = False) -> Tensors:
    """All of a small model, with what such files hold besides."""
    levels = tuple("Cross" in kind for kind in unet_of(config).up_block_types)
    names: dict[str, Callable[[str], str]] = {
        "unet": partial(unet_name, with_attention=levels),
        "vae": partial(vae_name, levels=2),
        "text_encoder": text_name,
    }
    made: Tensors = {"alphas_cumprod": torch.ones(1000), "model_ema.num_updates": torch.tensor(3).int()}
    made["model_ema.diffusion_modelinput_blocks00weight"] = torch.ones(3)
    for part, file in FILES.items():
        tensors = load_file(folder / file)
        if part == "text_encoder" and second:
            made |= open_clip(tensors, OPEN_CLIP, layers=2)
        else:
            made |= renamed(tensors, names[part])
    made |= {} if second else {f"{TEXT}text_model.embeddings.position_ids": torch.arange(77)[None]}
    return made


def written(folder: Path, config: ModelConfig) -> Path:
    pytest.importorskip("diffusers", reason="needs the extra diffusers")
    write_checkpoint(folder, config, seed=7)
    return folder


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("one") / "first", FIRST)


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("one") / "second", SECOND)


@pytest.fixture
def tensors(stable_checkpoint: Path) -> Tensors:
    return as_one(stable_checkpoint, STABLE)


@pytest.fixture
def tokenizer(stable_checkpoint: Path) -> Path:
    return stable_checkpoint / "tokenizer"


def write(tensors: Tensors, file: Path, metadata: dict[str, str] | None = None) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, metadata)
    return file


def same_tensors(found: Path, wanted: Path) -> None:
    for part, name in FILES.items():
        stored, given = load_file(wanted / name), load_file(found / name)
        given = {key.removeprefix("text_model."): tensor for key, tensor in given.items()}
        assert given.keys() == stored.keys(), part
        assert all(torch.equal(given[key], stored[key]) for key in stored), part


@pytest.mark.seen("single file whose shapes do not tell", "unpacked with `--config FOLDER`")
def test_all_tensors_arrive_by_configs_that_are_given(
    tensors: Tensors, stable_checkpoint: Path, tmp_path: Path
) -> None:
    """From a folder whose tokenizer is taken, too: nothing in the file says that it has four heads."""
    file = write(tensors, tmp_path / "model.safetensors")
    md_export("unpack", file, "--config", stable_checkpoint, "-o", tmp_path / "out")
    same_tensors(tmp_path / "out", stable_checkpoint)
    assert open_checkpoint(tmp_path / "out").config == open_checkpoint(stable_checkpoint).config


PUBLISHED = unet_of(arch_config("sd15"))
OF_2 = dataclasses.replace(
    PUBLISHED, cross_attention_dim=1024, use_linear_projection=True, attention_head_dim=(5, 10, 20, 20)
)


@pytest.mark.parametrize("unet", [PUBLISHED, OF_2], ids=["1", "2"])
def test_shapes_of_the_published_models(unet: DiffusersUNetConfig) -> None:
    """Without memory, and not each other's."""
    pytest.importorskip("diffusers", reason="needs the extra diffusers")
    config = dataclasses.replace(arch_config("sd15"), denoiser=unet)
    names = partial(unet_name, with_attention=(False, True, True, True), layers=2)
    made = build_on_meta(family_of(config).rows["unet"], config).state_dict()
    shapes = {names(name).removeprefix(UNET): tuple(tensor.shape) for name, tensor in made.items()}
    assert unet_config(shapes, 64) == unet != (OF_2 if unet == PUBLISHED else PUBLISHED)


@pytest.mark.seen("single file of Stable Diffusion 1, any width", "unpacked by the shapes of its tensors")
def test_stable_diffusion_1_by_its_shapes(first: Path, tmp_path: Path) -> None:
    file = write(as_one(first, FIRST), tmp_path / "model.safetensors")
    held = unpack(file, first / "tokenizer", tmp_path / "out")
    assert held == "Stable Diffusion 1, 128×128, predicts epsilon (no marker)"
    same_tensors(tmp_path / "out", first)
    assert open_checkpoint(tmp_path / "out").config == open_checkpoint(first).config


@pytest.mark.seen(
    "single file of Stable Diffusion 2, pruned", 'unpacked; OpenCLIP\'s last layer is left out, "!" fills prompts'
)
def test_stable_diffusion_2_by_its_shapes(first: Path, second: Path, tmp_path: Path) -> None:
    """Queries, keys and values apart again, the last layer left out, filled with "!"."""
    file = write(as_one(second, SECOND, second=True), tmp_path / "model.safetensors")
    held = unpack(file, first / "tokenizer", tmp_path / "out", prediction="v_prediction")
    assert held == "Stable Diffusion 2, 192×192, predicts v_prediction (--prediction)"
    same_tensors(tmp_path / "out", second)
    found, wanted = open_checkpoint(tmp_path / "out").config, open_checkpoint(second).config
    assert found.denoiser == dataclasses.replace(unet_of(wanted), sample_size=96) and found.vae == wanted.vae
    assert found.text_encoder == wanted.text_encoder and found.schedule.prediction_type == "v_prediction"
    ids = tokenize(tmp_path / "out" / "tokenizer", "a", 77)
    assert ids[0, -1] == 0 and tokenize(first / "tokenizer", "a", 77)[0, -1] == 519


@pytest.mark.seen("single file of Stable Diffusion 2 converted back", "unpacked with all layers of its text encoder")
def test_a_converted_text_encoder_without_a_last_layer(second: Path, tmp_path: Path) -> None:
    """As diffusers' script writes it back: no projection, and no layer to leave out."""
    gone = ("resblocks.2.", "text_projection", "logit_scale")
    tensors = {k: v for k, v in as_one(second, SECOND, second=True).items() if not any(part in k for part in gone)}
    unpack(write(tensors, tmp_path / "m.safetensors"), second / "tokenizer", tmp_path / "out", prediction="epsilon")
    same_tensors(tmp_path / "out", second)


@pytest.mark.seen("single file of an in-painting model", "unpacked with nine channels")
def test_in_painting_keeps_its_channels(first: Path, second: Path, tmp_path: Path) -> None:
    """Those of Stable Diffusion 2 predict epsilon without saying so."""
    for folder, config in ((first, FIRST), (second, SECOND)):
        tensors = as_one(folder, config, second=folder == second)
        tensors[f"{UNET}input_blocks.0.0.weight"] = torch.zeros(unet_of(config).block_out_channels[0], 9, 3, 3)
        out = tmp_path / folder.name
        held = unpack(write(tensors, tmp_path / "model.safetensors"), folder / "tokenizer", out)
        assert open_checkpoint(out).config.inpaints and "predicts epsilon (no marker)" in held


@pytest.mark.seen("single file of InstructPix2Pix", "unpacked with eight channels")
def test_editing_keeps_its_channels(first: Path, tmp_path: Path) -> None:
    name, tensors = f"{UNET}input_blocks.0.0.weight", as_one(first, FIRST)
    tensors[name] = torch.randn(32, 8, 3, 3)
    held = unpack(write(tensors, tmp_path / "model.safetensors"), first / "tokenizer", tmp_path / "out")
    made = open_checkpoint(tmp_path / "out")
    assert made.config.edits and not made.config.inpaints and "predicts epsilon (no marker)" in held
    assert torch.equal(made.module("unet").get_parameter("conv_in.weight"), tensors[name])
    tensors[name] = torch.randn(32, 7, 3, 3)
    with pytest.raises(CheckpointError, match=r"in_channels=7, .* or 8 for editing, or 9 for in-painting"):
        unpack(write(tensors, tmp_path / "model.safetensors"), first / "tokenizer", tmp_path / "no")


V, ZERO = "v_prediction", " with zero terminal SNR"
NO_SIGNAL = torch.linspace(1, 0, 1000)
# Keys, metadata, and what is said.
MARKED: dict[str, tuple[Tensors, dict[str, str], str]] = {
    "key": ({"v_pred": torch.zeros(0)}, {}, f"{V} (its key v_pred)"),
    "keys": ({"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, {}, f"{V}{ZERO} (its key v_pred)"),
    "a key of ints": ({"v_pred": torch.ones(1, dtype=torch.uint8)}, {}, f"{V} (its key v_pred)"),
    "zero alone": ({"ztsnr": torch.zeros(0)}, {}, "epsilon (no marker)"),
    "alphas": ({"v_pred": torch.zeros(0), "alphas_cumprod": NO_SIGNAL}, {}, f"{V}{ZERO} (its key v_pred)"),
    "metadata": ({}, {"modelspec.prediction_type": "v"}, f"{V} (modelspec.prediction_type)"),
    "epsilon": ({}, {"modelspec.prediction_type": "epsilon"}, "epsilon (modelspec.prediction_type)"),
    "architecture": ({}, {"modelspec.architecture": "stable-diffusion-v2-768-v"}, f"{V} (modelspec.architecture)"),
    "kohya": ({}, {"ss_v_parameterization": "True", "ss_zero_terminal_snr": "True"}, f"{V}{ZERO} (ss_v_parameter"),
}


@pytest.mark.seen("`v_pred`, `ztsnr` and other markers of a training", "written into the scheduler's config")
@pytest.mark.parametrize("case", MARKED)
def test_markers(first: Path, tmp_path: Path, case: str) -> None:
    keys, metadata, said = MARKED[case]
    file = write(as_one(first, FIRST) | keys, tmp_path / "model.safetensors", metadata)
    assert f"predicts {said}" in unpack(file, first / "tokenizer", tmp_path / "out")
    schedule = open_checkpoint(tmp_path / "out").config.schedule
    assert schedule.prediction_type == said.split()[0] and schedule.rescale_betas_zero_snr == (ZERO in said)
    assert schedule.timestep_spacing == ("trailing" if ZERO in said else "leading")


@pytest.mark.seen("size in metadata, `parameterization` in a `.yaml` beside the file", "used")
def test_size_and_yaml(first: Path, tmp_path: Path) -> None:
    file = write(as_one(first, FIRST), tmp_path / "m.safetensors", {"modelspec.resolution": "64x64"})
    file.with_suffix(".yaml").write_text('model:\n  params:\n    parameterization: "v"\n    linear_start: 0.00085\n')
    held = unpack(file, first / "tokenizer", tmp_path / "out")
    assert held == "Stable Diffusion 1, 64×64, predicts v_prediction (m.yaml)"
    assert open_checkpoint(tmp_path / "out").config.denoiser.sample_size == 32


@pytest.mark.seen(
    "Stable Diffusion 2 that does not say what it predicts", "`global_step` says it, else `--prediction` is asked for"
)
def test_stable_diffusion_2_that_does_not_say(second: Path, tmp_path: Path) -> None:
    """The steps of a training say it, and else the spread of one norm, which small models do not have."""
    tensors = as_one(second, SECOND, second=True)
    with pytest.raises(CheckpointError, match="epsilon or v: give --prediction"):
        unpack(write(tensors, tmp_path / "m.safetensors"), second / "tokenizer", tmp_path / "out")
    for step, said in ((875_000, "epsilon"), (140_000, V)):
        torch.save({"state_dict": tensors, "global_step": step}, tmp_path / "m.ckpt")
        held = unpack(tmp_path / "m.ckpt", second / "tokenizer", tmp_path / said)
        assert f"predicts {said} (global_step {step})" in held


@pytest.mark.seen("`.ckpt` of PyTorch Lightning", "unpacked; records of the training are skipped")
def test_ckpt(first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what a training leaves beside the weights: callbacks, numpy's scalars, an optimizer's state."""
    name = "pytorch_lightning.callbacks.model_checkpoint"
    callback = type("ModelCheckpoint", (), {"__module__": name, "__qualname__": "ModelCheckpoint"})
    beside = {
        "global_step": 9,
        "callbacks": {callback: {"best_model_score": np.float64(3.5), "kind": np.dtype("f4")}},
        "optimizer_states": [{"exp_avg": torch.ones(4)}],
    }
    with monkeypatch.context() as patched:
        for parent in ("pytorch_lightning", "pytorch_lightning.callbacks"):
            patched.setitem(sys.modules, parent, ModuleType(parent))
        module = ModuleType(name)
        module.ModelCheckpoint = callback  # type: ignore[attr-defined]
        patched.setitem(sys.modules, name, module)
        torch.save({"state_dict": as_one(first, FIRST), **beside}, tmp_path / "m.ckpt")
    unpack(tmp_path / "m.ckpt", first / "tokenizer", tmp_path / "out")
    same_tensors(tmp_path / "out", first)


class Runs:
    """Writes a file when it is loaded, in a reader that is not restricted."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.seen("`.ckpt` that holds code", "refused; nothing runs")
@pytest.mark.parametrize("new", [True, False])
def test_code_in_a_ckpt_does_not_run(first: Path, tmp_path: Path, new: bool) -> None:
    made = tmp_path / "made"
    torch.save(
        {"state_dict": as_one(first, FIRST), "x": Runs(made)}, tmp_path / "m.ckpt", _use_new_zipfile_serialization=new
    )
    with pytest.raises(CheckpointError, match=r"would run code when it is loaded \(posix.mkdir\)"):
        unpack(tmp_path / "m.ckpt", first / "tokenizer", tmp_path / "out")
    assert not made.exists() and not (tmp_path / "out").exists()
    torch.load(tmp_path / "m.ckpt", weights_only=False)
    assert made.exists()


def test_compressed_archives_are_refused(first: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.ckpt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 1_000_000)
    with pytest.raises(CheckpointError, match="is compressed"):
        unpack(tmp_path / "bomb.ckpt", first / "tokenizer", tmp_path / "out")


@pytest.mark.seen("single file in float8 or bfloat16", "unpacked in the same type")
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16])
def test_small_floats(first: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in as_one(first, FIRST).items()
    }
    unpack(write(tensors, tmp_path / "m.safetensors"), first / "tokenizer", tmp_path / "out")
    weight = open_checkpoint(tmp_path / "out").module("unet").get_parameter("conv_in.weight")
    stored = open_checkpoint(first).module("unet").get_parameter("conv_in.weight")
    assert torch.equal(weight, stored.to(dtype).float()) and not torch.equal(weight, stored)


def test_what_is_missing_or_too_much_is_named(tensors: Tensors, tokenizer: Path, tmp_path: Path) -> None:
    whole = tensors | {f"{UNET}out.9.bias": torch.zeros(3)}
    del tensors[f"{UNET}out.2.bias"]
    tensors[f"{UNET}time_embed.0.bias"] = torch.zeros(3)
    with pytest.raises(
        CheckpointError, match=r"(?s)missing:\s+conv_out\.bias.*time_embedding\.linear_1\.bias: stored \[3\]"
    ):
        unpack(write(tensors, tmp_path / "model.safetensors"), tokenizer, tmp_path / "out", STABLE)
    with pytest.raises(CheckpointError, match=rf"1 of its tensors are not part of .*\n    {UNET}out.9.bias"):
        unpack(write(whole, tmp_path / "model.safetensors"), tokenizer, tmp_path / "out", STABLE)
    assert not (tmp_path / "out").exists()


WHOLE = "single files of Stable Diffusion 1, Stable Diffusion 2 or Stable Diffusion XL are unpacked"
OTHERS = {
    "model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight": f"holds Stable Diffusion 3; {WHOLE}",
    "double_blocks.0.img_attn.qkv.weight": f"holds FLUX; {WHOLE}",
    "model.diffusion_model.double_stream_modulation_img.lin.weight": "holds FLUX.2",
    "conditioner.embedders.0.model.ln_final.weight": "holds the refiner of Stable Diffusion XL",
    "conditioner.embedders.0.transformer.text_model.final_layer_norm.bias": "holds no UNet, no name begins",
    "edm_mean": "holds Playground 2.5",
    "attention_y_norm.weight": "holds SANA",
    "double_layers.0.attn.w1q.weight": "holds AuraFlow",
    "control_model.input_blocks.0.0.weight": "holds a ControlNet",
    "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": "holds a LoRA: give it with --lora",
    "string_to_param.*": "holds a textual inversion",
    "scaled_fp8": "holds weights in float8 with scales beside them (ComfyUI), such as scaled_fp8: give",
    f"{UNET}input_blocks.0.0.weight": "holds the UNet of a Stable Diffusion alone",
    "input_blocks.0.0.weight": "holds the UNet of a Stable Diffusion alone",
    "down_blocks.0.resnets.0.conv1.weight": "holds a UNet alone, as diffusers names it",
    "decoder.conv_in.weight": "holds a VAE alone",
    f"{VAE}decoder.conv_in.weight": "holds a VAE alone",
    f"{VAE}x": "holds no UNet, no name begins with model.diffusion_model.",
}


@pytest.mark.seen(
    "single files of SD3, FLUX, the refiner of SDXL and others, of one part, or of a LoRA", "named as what they are"
)
@pytest.mark.parametrize("name", OTHERS)
def test_other_files_are_named(name: str, tokenizer: Path, tmp_path: Path) -> None:
    file = write({name: torch.zeros(1)}, tmp_path / "model.safetensors")
    fails(md_export("unpack", file, "--tokenizer", tokenizer, "-o", tmp_path / "out"), 1, OTHERS[name])


def test_names_that_only_look_right(tokenizer: Path, tmp_path: Path) -> None:
    names = (f"{UNET}input_blocks.x", f"{VAE}mid.block_9", f"{TEXT}text_model.x", f"{UNET}middle_block.7.conv")
    file = write({name: torch.zeros(1) for name in names}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError):
        unpack(file, tokenizer, tmp_path / "out")


# A name in the file, what is there instead, and what is said.
DAMAGED: dict[str, tuple[str, Any, str]] = {
    "no dimension": (f"{UNET}input_blocks.0.0.weight", torch.tensor(1.0), "which gives a size"),
    "strange width": (
        f"{UNET}input_blocks.1.0.in_layers.2.weight",
        torch.zeros(33, 32, 3, 3),
        "not multiples of 32.*--config",
    ),
    "no text": (f"{TEXT}text_model.embeddings.token_embedding.weight", torch.zeros(0, 64), "which gives a size"),
    "narrow text": (f"{TEXT}text_model.embeddings.token_embedding.weight", torch.zeros(520, 40), "not a multiple of 6"),
    "ints": (f"{UNET}out.2.weight", torch.zeros(4, 32, 3, 3).char(), "as int8: give the file from before quant"),
    "wide": (f"{UNET}out.2.weight", torch.zeros(4, 96, 3, 3), r"conv_out.weight: stored \[4, 96, 3, 3\]"),
    "many rows": (f"{TEXT}text_model.embeddings.token_embedding.weight", torch.zeros(300, 64), "token ids 0 to 519"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_files(first: Path, tmp_path: Path, case: str) -> None:
    name, value, said = DAMAGED[case]
    tensors = as_one(first, FIRST) | {name: value}
    with pytest.raises(CheckpointError, match=f"(?s){said}") as raised:
        unpack(write(tensors, tmp_path / "model.safetensors"), first / "tokenizer", tmp_path / "out")
    assert not (tmp_path / "out").exists() and len(list(tmp_path.iterdir())) == 1
    assert not any(part.startswith(".") for line in str(raised.value).splitlines() for part in line.split("/"))


def test_what_else_is_wrong(tensors: Tensors, stable_checkpoint: Path, tokenizer: Path, tmp_path: Path) -> None:
    file = write(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"md-export unpack \S+model.safetensors --tokenizer DIR -o DIR"):
        open_checkpoint(file)
    with pytest.raises(CheckpointError, match="holds no tokenizer"):
        unpack(file, stable_checkpoint / "unet", tmp_path / "out", STABLE)
    with pytest.raises(CheckpointError, match=r"--tokenizer DIR; they are in https://huggingface.co/openai/clip"):
        unpack(file, None, tmp_path / "out", STABLE)
    with pytest.raises(CheckpointError, match=r"ends in .safetensors, .ckpt"):
        unpack(tmp_path / "model.onnx", tokenizer, tmp_path / "out")
    with pytest.raises(OutputError):
        unpack(file, tokenizer, tmp_path, STABLE)
    assert json.loads((tokenizer / "tokenizer_config.json").read_text())["pad_token"] == END
