"""Single files of Stable Diffusion XL as folders; diffusers' own reading of the same file is the reference."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

from md_export.checkpoint import build_on_meta, open_checkpoint
from md_export.checkpoint.architectures import arch_config, config_files
from md_export.checkpoint.random_tokenizer import write_tokenizer
from md_export.checkpoint.single_file import unpack
from md_export.checkpoint.single_file_config import unet_config
from md_export.checkpoint.single_file_parts import CLIP_OF_XL, OPEN_CLIP_OF_XL, UNET
from md_export.errors import CheckpointError
from md_export.models.diffusers_unet import XLUNetConfig
from md_export.models.families import family_of
from md_export.models.sampling.generate import PictureRequest, draw_noise
from md_export.models.tokenizers import tokenize
from md_export.models.vae import VAEConfig
from md_export.parity.golden.prepare import golden_source
from md_export.spec.sampler import SamplerPlan
from single_file import open_clip, renamed, unet_name, vae_name
from small_models import STABLE, XL

diffusers = pytest.importorskip("diffusers", reason="needs the extra diffusers")
PROMPT, SEED, CLOSE = "a red apple! on a table", 3, 1e-4
# As published models are: 32 groups, heads of 64; the pooled vector has another width than the second encoder.
SECOND = {
    **(XL.text_encoder_2 or {}),
    "hidden_size": 128,
    "num_attention_heads": 2,
    "projection_dim": 96,
    "layer_norm_eps": 1e-5,
}
SMALL = dataclasses.replace(
    XL,
    text_encoder={**XL.text_encoder, "num_attention_heads": 1, "hidden_act": "quick_gelu", "pad_token_id": 519},
    text_encoder_2=SECOND,
    denoiser=dataclasses.replace(
        XL.denoiser,
        block_out_channels=(64, 64, 128),
        norm_num_groups=32,
        attention_head_dim=(1, 1, 2),
        cross_attention_dim=192,
        projection_class_embeddings_input_dim=96 + 6 * 8,
    ),
    vae=VAEConfig(latent_channels=4, block_out_channels=(32, 64), layers_per_block=1, scaling_factor=0.13025),
)
OF_VAE = ("latent_channels", "block_out_channels", "layers_per_block", "scaling_factor")
BLOCKS = ("down_block_types", "up_block_types")
SIZE = {"modelspec.resolution": "32x32"}
Tensors = dict[str, Tensor]


def as_one(parts: dict[str, Any]) -> Tensors:
    made: Tensors = {"conditioner.embedders.1.model.logit_scale": torch.tensor(4.6)}
    levels = ("CrossAttn" in kind for kind in parts["unet"].config.up_block_types)
    made |= renamed(parts["unet"].state_dict(), partial(unet_name, with_attention=tuple(levels)))
    made |= renamed(parts["vae"].state_dict(), partial(vae_name, levels=2))
    first = {name.removeprefix("text_model."): one for name, one in parts["text_encoder"].state_dict().items()}
    made |= {f"{CLIP_OF_XL}text_model.{name}": one for name, one in first.items()}
    second = {name.removeprefix("text_model."): one for name, one in parts["text_encoder_2"].state_dict().items()}
    in_file = open_clip(second, OPEN_CLIP_OF_XL, layers=3)
    in_file[f"{OPEN_CLIP_OF_XL}text_projection"] = second["text_projection.weight"].T
    return made | {name: one for name, one in in_file.items() if "resblocks.3." not in name}


@pytest.fixture(scope="module")
def parts() -> dict[str, Any]:
    """diffusers' and transformers' own modules, with random weights."""
    torch.manual_seed(5)
    files: dict[str, Any] = {name.partition("/")[0]: values for name, values in config_files(SMALL).items()}
    unet = {name: value for name, value in files["unet"].items() if name != "_class_name"}
    return {
        "text_encoder": transformers.CLIPTextModel(transformers.CLIPTextConfig(**SMALL.text_encoder)),
        "text_encoder_2": transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**SECOND)),
        "unet": diffusers.UNet2DConditionModel(**unet),
        "vae": diffusers.AutoencoderKL(**{name: files["vae"][name] for name in OF_VAE + BLOCKS}),
    }


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    write_tokenizer(folder / "tokenizer", "text_encoder", SMALL.text_encoder)
    return folder / "tokenizer"


def write(tensors: Tensors, file: Path, metadata: dict[str, str] = SIZE) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, metadata)
    return file


def picture(folder: Path) -> Any:
    pipeline = golden_source(open_checkpoint(folder), sampler=SamplerPlan(2, guidance=5.0)).pipeline
    (values,) = pipeline.values([PictureRequest(PROMPT, SEED)])
    return values["made.picture"]


def theirs(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    noise = torch.from_numpy(draw_noise(SEED, (1, 4, 16, 16)))
    return pipe(PROMPT, num_inference_steps=2, guidance_scale=5.0, latents=noise, output_type="np").images[0]


@pytest.mark.seen("single file of SDXL, any width", "unpacked; the same pictures as diffusers makes of the file")
def test_pictures_are_those_of_diffusers(parts: dict[str, Any], tokenizer: Path, tmp_path: Path) -> None:
    """By ``from_single_file``, and by ``from_pretrained`` of the folder."""
    file = write(as_one(parts), tmp_path / "model.safetensors")
    held = unpack(file, tokenizer, tmp_path / "out")
    assert held == "Stable Diffusion XL, 32×32, predicts epsilon (no marker)"
    made = open_checkpoint(tmp_path / "out").config
    assert (made.denoiser, made.text_encoder_2) == (SMALL.denoiser, SMALL.text_encoder_2)
    assert made.text_encoder == {**SMALL.text_encoder, "projection_dim": 64, "layer_norm_eps": 1e-5}
    kind, ours = diffusers.StableDiffusionXLPipeline, picture(tmp_path / "out")
    of_folder = kind.from_pretrained(tmp_path / "out")
    of_file = kind.from_single_file(str(file), config=str(tmp_path / "out"), local_files_only=True)
    for name in parts:
        stored = parts[name].state_dict()
        assert all(torch.equal(stored[key], one) for key, one in getattr(of_file, name).state_dict().items()), name
        assert all(torch.equal(stored[key], one) for key, one in getattr(of_folder, name).state_dict().items()), name
    assert np.abs(theirs(of_file) - ours).max() < CLOSE
    assert np.abs(theirs(of_folder) - ours).max() < CLOSE
    of_file.text_encoder_2.text_projection.weight.data *= 1.5
    assert np.abs(theirs(of_file) - ours).max() > CLOSE


def test_a_projection_as_transformers_writes_it(parts: dict[str, Any], tokenizer: Path, tmp_path: Path) -> None:
    tensors, name = as_one(parts), f"{OPEN_CLIP_OF_XL}text_projection"
    tensors[f"{name}.weight"] = tensors.pop(name).T
    unpack(write(tensors, tmp_path / "model.safetensors"), tokenizer, tmp_path / "out")
    found = open_checkpoint(tmp_path / "out").module("text_encoder_2").get_parameter("text_projection.weight")
    assert torch.equal(found, tensors[f"{name}.weight"])


def test_each_tokenizer_has_its_padding(parts: dict[str, Any], tokenizer: Path, tmp_path: Path) -> None:
    unpack(write(as_one(parts), tmp_path / "model.safetensors"), tokenizer, tmp_path / "out")
    first, second = (
        tokenize(folder, "a", 77)[0, -1] for folder in open_checkpoint(tmp_path / "out").tokenizers.values()
    )
    assert (first, second) == (519, 0)


def test_configs_of_a_folder(parts: dict[str, Any], tokenizer: Path, tmp_path: Path) -> None:
    file = write(as_one(parts), tmp_path / "model.safetensors")
    unpack(file, tokenizer, tmp_path / "out", SMALL)
    assert open_checkpoint(tmp_path / "out").config == SMALL
    with pytest.raises(CheckpointError, match="holds Stable Diffusion XL, and --config another family"):
        unpack(file, tokenizer, tmp_path / "no", STABLE)
    with pytest.raises(CheckpointError, match="the weights do not fit"):
        unpack(file, tokenizer, tmp_path / "no", XL)


@pytest.mark.seen("single file of SDXL with `v_pred` and `ztsnr`, or for in-painting", "unpacked as such")
def test_markers_and_channels(parts: dict[str, Any], tokenizer: Path, tmp_path: Path) -> None:
    marked = as_one(parts) | {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    marked[f"{UNET}input_blocks.0.0.weight"] = torch.zeros(64, 9, 3, 3)
    held = unpack(write(marked, tmp_path / "model.safetensors", {}), tokenizer, tmp_path / "out")
    assert held == "Stable Diffusion XL, 256×256, predicts v_prediction with zero terminal SNR (its key v_pred)"
    config = open_checkpoint(tmp_path / "out").config
    assert config.inpaints and config.schedule.rescale_betas_zero_snr and config.method == "euler"


PUBLISHED = arch_config("sdxl").denoiser
assert isinstance(PUBLISHED, XLUNetConfig)
PRUNED = dataclasses.replace(
    PUBLISHED,
    mid_block_type="UNetMidBlock2D",
    transformer_layers_per_block=(1, 2, 4),
    reverse_transformer_layers_per_block=((4, 4, 10), (2, 1, 1), 1),
)


@pytest.mark.parametrize("unet", [PUBLISHED, PRUNED], ids=["1.0", "SSD-1B"])
def test_shapes_of_the_published_models(unet: XLUNetConfig) -> None:
    """Without memory, and not each other's."""
    config = dataclasses.replace(arch_config("sdxl"), denoiser=unet)
    names = partial(unet_name, with_attention=(True, True, False), layers=2)
    made = build_on_meta(family_of(config).rows["unet"], config).state_dict()
    shapes = {names(name).removeprefix(UNET): tuple(tensor.shape) for name, tensor in made.items()}
    assert unet_config(shapes, 128, 1280) == unet != (PRUNED if unet == PUBLISHED else PUBLISHED)


# Part of the names that are left out, and what is said.
LACKS = {
    CLIP_OF_XL: "holds no text encoder, no name begins with conditioner.embedders.0.transformer.",
    OPEN_CLIP_OF_XL: "holds no second text encoder, no name begins with conditioner.embedders.1.model.",
    "text_projection": "it lacks text_projection, which gives a size",
    "label_emb.0.0.weight": "it lacks label_emb.0.0.weight, which gives a size",
    "resblocks.2.ln_1.weight": "encoder.layers.2.layer_norm1.weight",
}


@pytest.mark.parametrize("gone", LACKS)
def test_what_is_missing_is_named(parts: dict[str, Any], tokenizer: Path, tmp_path: Path, gone: str) -> None:
    tensors = {name: one for name, one in as_one(parts).items() if gone not in name}
    with pytest.raises(CheckpointError, match=f"(?s){LACKS[gone]}"):
        unpack(write(tensors, tmp_path / "model.safetensors"), tokenizer, tmp_path / "out")
    assert not (tmp_path / "out").exists()
