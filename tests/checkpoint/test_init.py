"""Random checkpoints: whole, openable, the same for the same seed, and never half-written."""

from __future__ import annotations

import filecmp
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from md_export.checkpoint import architectures as init
from md_export.checkpoint import open_checkpoint, read_config
from md_export.checkpoint.architectures import ARCHS, arch_config, init_checkpoint, write_checkpoint
from md_export.checkpoint.random_tokenizer import write_tokenizer
from md_export.cli import checkpoints as command_line
from md_export.engine.plan import ExportRequest
from md_export.engine.planning import plan
from md_export.errors import CheckpointError, ConfigError, OutputError, UsageError
from md_export.models.config import ModelConfig
from md_export.models.families import COMPONENTS
from md_export.spec.recipe_file import load_recipe
from md_export.spec.shipped_files import builtin_recipe


def files_of(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_layout_is_diffusers(other_checkpoint: Path) -> None:
    assert files_of(other_checkpoint) == [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "tokenizer/merges.txt",
        "tokenizer/special_tokens_map.json",
        "tokenizer/tokenizer_config.json",
        "tokenizer/vocab.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ]
    index = json.loads((other_checkpoint / "model_index.json").read_text())
    assert set(index) - {"_class_name"} == {"text_encoder", "tokenizer", "unet", "vae", "scheduler"}


def test_configs_survive_the_round_trip(other_checkpoint: Path, other_config: ModelConfig) -> None:
    config = read_config(other_checkpoint)
    assert (config.denoiser, config.vae, config.schedule) == (
        other_config.denoiser,
        other_config.vae,
        other_config.schedule,
    )
    assert other_config.text_encoder.items() <= config.text_encoder.items()


def test_the_result_opens_and_every_component_loads(other_checkpoint: Path) -> None:
    checkpoint = open_checkpoint(other_checkpoint)
    checkpoint.check()
    for name in (*COMPONENTS, "vae_encoder"):
        assert all(torch.isfinite(p).all() for p in checkpoint.module(name).parameters())


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_weights_are_stored_in_the_dtype_asked_for(tmp_path: Path, other_config: ModelConfig, dtype: str) -> None:
    write_checkpoint(tmp_path / "c", other_config, 0, dtype)
    for name in ("unet", "vae_decoder", "text_encoder"):
        (file,) = open_checkpoint(tmp_path / "c").weight_files(name)
        with safe_open(file, framework="pt") as handle:
            assert {handle.get_tensor(key).dtype for key in handle.keys()} == {getattr(torch, dtype)}  # noqa: SIM118


def test_same_seed_same_bytes_other_seed_other_weights(
    tmp_path: Path, other_checkpoint: Path, other_config: ModelConfig
) -> None:
    torch.manual_seed(99)
    before = torch.get_rng_state()
    write_checkpoint(tmp_path / "same", other_config, 7)
    assert torch.equal(torch.get_rng_state(), before), "the caller's generator moved"
    names = files_of(other_checkpoint)
    assert filecmp.cmpfiles(other_checkpoint, tmp_path / "same", names, shallow=False)[0] == names
    write_checkpoint(tmp_path / "other", other_config, 8)
    differing = filecmp.cmpfiles(other_checkpoint, tmp_path / "other", names, shallow=False)[1]
    assert sorted(differing) == [name for name in names if name.endswith(".safetensors")]
    assert open_checkpoint(tmp_path / "same").sha256() == open_checkpoint(other_checkpoint).sha256()


def test_activations_stay_of_order_one(other_checkpoint: Path) -> None:
    checkpoint = open_checkpoint(other_checkpoint)
    generator = torch.Generator().manual_seed(0)
    text = checkpoint.module("text_encoder")(torch.randint(0, 512, (1, 77), generator=generator))
    noise = torch.randn(checkpoint.config.latent_shape, generator=generator)
    out = checkpoint.module("unet")(noise, torch.tensor([999.0]), text)
    image = checkpoint.module("vae_decoder")(out)
    for tensor in (text, out, image):
        assert 0.05 < tensor.std() < 5


def test_tokenizer_round_trip(other_checkpoint: Path) -> None:
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(other_checkpoint / "tokenizer")
    caption = "a large red circle, ½ of it blue"
    ids = tokenizer(caption, padding="max_length", max_length=77, truncation=True).input_ids
    assert len(ids) == 77
    assert ids[0] == 598
    assert ids[-1] == ids[ids.index(599)] == 599
    assert max(ids) < 600
    assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == caption.replace(" ", "")


def test_full_size_special_tokens_are_clips(tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    write_tokenizer(folder, "text_encoder", arch_config("md").text_encoder)
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(folder)
    assert tokenizer("a").input_ids == [49406, 320, 49407]  # "a</w>" is 320 in CLIP's own vocabulary too


def test_tokenizer_needs_room_for_all_bytes(tmp_path: Path, other_config: ModelConfig) -> None:
    text = {**other_config.text_encoder, "vocab_size": 100, "bos_token_id": 98, "eos_token_id": 99}
    with pytest.raises(ConfigError, match="needs two ids for start and end, from 512 to"):
        write_checkpoint(tmp_path / "c", replace(other_config, text_encoder=text), 0)
    assert list(tmp_path.iterdir()) == []


def test_nano_can_be_written(tmp_path: Path, nano: Path) -> None:
    assert init_checkpoint(tmp_path / "c", "nano", 0) == tmp_path / "c"
    checkpoint = open_checkpoint(tmp_path / "c")
    checkpoint.check()
    assert checkpoint.config.denoiser == open_checkpoint(nano).config.denoiser


@pytest.mark.parametrize(
    ("arch", "seed", "dtype", "said"),
    [
        (
            "md-huge",
            0,
            "float16",
            "unknown architecture 'md-huge'; use one of md, md-lite, sd15, sdxl, pixart, dit, nano",
        ),
        ("nano", -1, "float16", "seed -1 is negative"),
        ("nano", 0, "int8", "unknown dtype 'int8'; use one of float16, float32"),
    ],
)
def test_wrong_arguments(tmp_path: Path, arch: str, seed: int, dtype: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        init_checkpoint(tmp_path / "c", arch, seed, dtype)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["folder", "file", "dangling link"])
def test_existing_output_is_refused_and_kept(tmp_path: Path, other_config: ModelConfig, kind: str) -> None:
    out = tmp_path / "c"
    make: dict[str, Callable[[], None]] = {
        "folder": out.mkdir,
        "file": out.touch,
        "dangling link": lambda: out.symlink_to("nowhere"),
    }
    make[kind]()
    with pytest.raises(OutputError, match="exists"):
        write_checkpoint(out, other_config, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_no_space_is_said_before_anything_is_written(
    tmp_path: Path, other_config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(OutputError, match="free"):
        write_checkpoint(tmp_path / "c", other_config, 0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["disk", "^C"])
def test_nothing_is_left_half_written(
    tmp_path: Path, other_config: ModelConfig, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    def fail(*_: object, **__: object) -> None:
        folder, lock = sorted(item.name for item in tmp_path.iterdir())
        assert lock == f"{folder}.lock", "a temporary sibling is being written"
        raise failure

    monkeypatch.setattr(init, "save_file", fail)
    with pytest.raises(OutputError if isinstance(failure, OSError) else KeyboardInterrupt) as caught:
        write_checkpoint(tmp_path / "c", other_config, 0)
    assert list(tmp_path.iterdir()) == []
    if isinstance(failure, OSError):
        assert "No space left on device" in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_parent(tmp_path: Path, other_config: ModelConfig) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="cannot be written"):
        write_checkpoint(tmp_path / "c", other_config, 0)


def test_parent_that_is_a_file(tmp_path: Path, other_config: ModelConfig) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        write_checkpoint(tmp_path / "file" / "c", other_config, 0)


def test_absurd_config_is_refused_before_allocation(tmp_path: Path, other_config: ModelConfig) -> None:
    unet = replace(other_config.denoiser, block_out_channels=(16, 48, 640_000))
    with pytest.raises(CheckpointError, match="8 billion parameters"):
        write_checkpoint(tmp_path / "c", replace(other_config, denoiser=unet), 0)
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_knows_every_architecture() -> None:
    """It has the names itself, so that help loads no model."""
    assert set(command_line.ARCHS) == set(ARCHS)


@pytest.mark.parametrize("name", ARCHS)
def test_archs_fit_together(name: str) -> None:
    config = arch_config(name)
    config.check()
    assert config.image_size == {"nano": 64, "sdxl": 1024, "pixart": 1024, "dit": 256}.get(name, 512)


@pytest.mark.seen("random weights of `md-export init`", "thresholds that random weights meet, said in a line")
def test_thresholds_are_lower_for_random_weights_alone(tmp_path: Path, nano: Path) -> None:
    """Sums of random terms cancel: float16 leaves 52.7 dB of this decoder, and the recipe's 55 suit trained ones."""
    made, recipe = init_checkpoint(tmp_path / "made", "nano", 0), load_recipe(builtin_recipe("onnx", "fp16"))
    assert "the weights are random" in open_checkpoint(made).notes[0]
    for folder, lower in ((made, 4.0), (nano, 0.0)):
        request = plan([recipe], folder, None).steps[-1].request
        assert isinstance(request, ExportRequest)
        assert request.recipe.tolerances["vae_decoder"].snr_db == recipe.tolerances["vae_decoder"].snr_db - lower
        assert request.recipe.picture_psnr_db == recipe.picture_psnr_db - lower
    assert open_checkpoint(nano).notes == ()
