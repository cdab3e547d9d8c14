"""Opening checkpoints: what is read, and that each thing that can be wrong is said in one clear message."""

from __future__ import annotations

import itertools
import json
import math
import os
import pickle
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from md_export.checkpoint import Checkpoint, build_on_meta, open_checkpoint, read_config
from md_export.checkpoint.architectures import write_checkpoint
from md_export.checkpoint.weights import WeightSet
from md_export.errors import CheckpointError, ConfigError, MdExportError, UsageError
from md_export.models.config import ModelConfig
from md_export.models.families import COMPONENTS
from md_export.models.families.latent_diffusion import VAE_ENCODER
from md_export.models.unet import MDUNetConfig
from md_export.models.vae import VAEConfig

CONFIG = ModelConfig(
    text_encoder={
        "vocab_size": 600,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 77,
        "bos_token_id": 512,
        "eos_token_id": 513,
        "pad_token_id": 513,
    },
    denoiser=MDUNetConfig(
        sample_size=8,
        block_out_channels=(16, 32, 48),
        cross_attention_dim=32,
        attention_head_dim=16,
        norm_num_groups=8,
        time_embed_dim=32,
        down_layers=1,
        up_layers=1,
    ),
    vae=VAEConfig(block_out_channels=(8, 8, 16, 16), layers_per_block=1, norm_num_groups=8),
)
TEXT = "text_encoder/model.safetensors"
UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="session")
def master(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole random checkpoint, float32; never changed."""
    folder = tmp_path_factory.mktemp("checkpoint") / "whole"
    write_checkpoint(folder, CONFIG, seed=1, dtype="float32")
    return folder


@pytest.fixture
def folder(master: Path, tmp_path: Path) -> Path:
    """A copy that the test may damage."""
    return Path(shutil.copytree(master, tmp_path / "checkpoint"))


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_tensors(path: Path, edit: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    edit(tensors)
    save_file(tensors, path)


def shard(folder: Path, name: str, suffix: str = ".safetensors") -> Path:
    """Split ``folder/name`` into two shards with an index; returns the index."""
    tensors = load_file(folder / name)
    (folder / name).unlink()
    base = folder / name.removesuffix(".safetensors")
    where: dict[str, str] = {}
    for number in (1, 2):
        part = {key: tensor for i, (key, tensor) in enumerate(sorted(tensors.items())) if i % 2 == number - 1}
        file = base.with_name(f"{base.name}-{number:05}-of-00002{suffix}")
        save_file(part, file) if suffix == ".safetensors" else torch.save(part, file)
        where |= dict.fromkeys(part, file.name)
    index = base.with_name(f"{base.name}{suffix}.index.json")
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return index


def refusal(folder: Path, component: str | None = None, error: type[MdExportError] = CheckpointError) -> str:
    """The message with which opening, or loading ``component``, is refused."""
    with pytest.raises(error) as caught:
        checkpoint = open_checkpoint(folder)
        if component is not None:
            checkpoint.module(component)
    return str(caught.value)


def equal_states(a: nn.Module, b: nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


# What is read


def test_open_gives_configs_and_places(master: Path) -> None:
    checkpoint = open_checkpoint(master)
    assert checkpoint.root == master
    assert checkpoint.parent is None
    assert checkpoint.tokenizer_dir == master / "tokenizer"
    assert checkpoint.trained_substitutions == ()
    assert (checkpoint.config.denoiser, checkpoint.config.vae) == (CONFIG.denoiser, CONFIG.vae)
    assert checkpoint.config.schedule == CONFIG.schedule
    assert read_config(master) == checkpoint.config
    checkpoint.check()


@pytest.mark.parametrize("name", [*COMPONENTS, "vae_encoder"])
def test_module_holds_the_stored_values(master: Path, name: str) -> None:
    module = open_checkpoint(master).module(name)
    component = {**COMPONENTS, "vae_encoder": VAE_ENCODER}[name]
    (file,) = open_checkpoint(master).weight_files(name)
    stored = {k: v for k, v in load_file(file).items() if k.startswith(component.key_prefixes)}
    assert stored.keys() == module.state_dict().keys()
    assert all(torch.equal(stored[k], v) for k, v in module.state_dict().items())
    assert not module.training
    assert not any(p.requires_grad for p in module.parameters())
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    assert open_checkpoint(master).component_bytes(name) == sum(t.nbytes for t in stored.values())


@pytest.mark.parametrize("name", COMPONENTS)
def test_constants_are_those_of_a_module_built_with_memory(master: Path, name: str) -> None:
    loaded = dict(open_checkpoint(master).module(name).named_buffers())
    built = dict(COMPONENTS[name].build(CONFIG).named_buffers())
    assert loaded.keys() == built.keys()
    assert all(torch.equal(loaded[k], built[k]) for k in built)


def test_all_components_run(master: Path) -> None:
    checkpoint = open_checkpoint(master)
    for component in COMPONENTS.values():
        inputs = [torch.from_numpy(spec.zeros()) for spec in component.input_specs(checkpoint.config)]
        out = checkpoint.module(component.name)(*inputs)
        assert tuple(out.shape) == component.output_specs(checkpoint.config)[0].shape
        assert torch.isfinite(out).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_become_float32(folder: Path, dtype: torch.dtype) -> None:
    edit_tensors(folder / UNET, lambda t: t.update({k: v.to(dtype) for k, v in t.items()}))
    module = open_checkpoint(folder).module("unet")
    stored = load_file(folder / UNET)
    assert all(v.dtype == torch.float32 and torch.equal(v, stored[k].float()) for k, v in module.state_dict().items())


def test_values_beyond_half_precision_are_no_error(folder: Path) -> None:
    edit_tensors(folder / UNET, lambda t: t["conv_in.bias"].fill_(1e6))
    assert open_checkpoint(folder).module("unet").state_dict()["conv_in.bias"].max() == 1e6


@pytest.mark.seen("weights in shards", "read")
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_shards_hold_the_same_module(folder: Path, master: Path, suffix: str) -> None:
    shard(folder, UNET, suffix)
    assert equal_states(open_checkpoint(folder).module("unet"), open_checkpoint(master).module("unet"))
    assert len(open_checkpoint(folder).weight_files("unet")) == 2


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 2020"])
@pytest.mark.parametrize(
    ("component", "stored", "pickled"),
    [("text_encoder", TEXT, "text_encoder/pytorch_model.bin"), ("unet", UNET, "unet/diffusion_pytorch_model.bin")],
)
def test_torch_files_hold_the_same_module(
    folder: Path, master: Path, component: str, stored: str, pickled: str, zipped: bool
) -> None:
    torch.save(load_file(folder / stored), folder / pickled, _use_new_zipfile_serialization=zipped)
    (folder / stored).unlink()
    assert equal_states(open_checkpoint(folder).module(component), open_checkpoint(master).module(component))


@pytest.mark.seen("`fp16` variant of the weights", "read")
def test_half_precision_variant_is_read_when_it_is_the_only_one(folder: Path) -> None:
    (folder / UNET).rename(folder / "unet/diffusion_pytorch_model.fp16.safetensors")
    assert open_checkpoint(folder).weight_files("unet")[0].name == "diffusion_pytorch_model.fp16.safetensors"
    open_checkpoint(folder).module("unet")


def test_older_text_encoder_names(folder: Path, master: Path) -> None:
    def rename(tensors: dict[str, Tensor]) -> None:
        old = {f"text_model.{name}": tensor for name, tensor in tensors.items()}
        tensors.clear()
        tensors.update(old)
        tensors["text_model.embeddings.position_ids"] = torch.arange(77)[None]

    edit_tensors(folder / TEXT, rename)
    assert equal_states(open_checkpoint(folder).module("text_encoder"), open_checkpoint(master).module("text_encoder"))


def test_older_vae_attention_names(folder: Path, master: Path) -> None:
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if ".mid_block.attentions.0.to_" in name]:
            head, tail = name.split("attentions.0.")
            kind, leaf = tail.rsplit(".", 1)
            tensors[f"{head}attentions.0.{old[kind]}.{leaf}"] = tensors.pop(name)

    edit_tensors(folder / VAE, rename)
    assert "decoder.mid_block.attentions.0.query.weight" in load_file(folder / VAE)
    for name in ("vae_decoder", "vae_encoder"):
        assert equal_states(open_checkpoint(folder).module(name), open_checkpoint(master).module(name))


def test_decoder_needs_no_encoder(folder: Path) -> None:
    edit_tensors(folder / VAE, lambda t: [t.pop(k) for k in list(t) if k.startswith(("encoder.", "quant_conv."))])
    open_checkpoint(folder).module("vae_decoder")
    assert "missing" in refusal(folder, "vae_encoder")


def test_trained_substitutions_come_from_the_unet_config(folder: Path) -> None:
    edit_json(folder / "unet/config.json", trained_substitutions=["gelu_to_swish"])
    assert open_checkpoint(folder).trained_substitutions == ("gelu_to_swish",)
    edit_json(folder / "unet/config.json", trained_substitutions="gelu_to_swish")
    assert "trained_substitutions must be a list" in refusal(folder, error=ConfigError)


def test_file_on_disk_is_not_changed_by_the_module(folder: Path) -> None:
    before = (folder / UNET).read_bytes()
    open_checkpoint(folder).module("unet").state_dict()["conv_in.bias"].fill_(7.0)
    assert (folder / UNET).read_bytes() == before


# The hash


def test_sha256_is_that_of_the_contents(master: Path, folder: Path) -> None:
    assert open_checkpoint(folder).sha256() == open_checkpoint(master).sha256()


@pytest.mark.parametrize(
    "name",
    [
        UNET,
        VAE,
        TEXT,
        "unet/config.json",
        "vae/config.json",
        "text_encoder/config.json",
        "scheduler/scheduler_config.json",
        "tokenizer/vocab.json",
        "tokenizer/merges.txt",
        "tokenizer/tokenizer_config.json",
    ],
)
def test_sha256_covers_every_file_in_use(folder: Path, master: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[-1:] = b" " if name.endswith(("json", "txt")) else bytes([content[-1] ^ 1])
    (folder / name).write_bytes(content)
    assert open_checkpoint(folder).sha256() != open_checkpoint(master).sha256()


def test_sha256_ignores_what_is_not_used(folder: Path, master: Path) -> None:
    (folder / "README.md").write_text("hello")
    (folder / "unet/training.log").write_text("loss")
    assert open_checkpoint(folder).sha256() == open_checkpoint(master).sha256()


# Siblings


@pytest.fixture
def sibling(folder: Path) -> Path:
    """A sibling two levels below its parent that stores one tensor and a config."""
    path = folder / "siblings/gelu"
    (path / "unet").mkdir(parents=True)
    (path / "sibling.json").write_text(json.dumps({"parent": "../..", "note": "kept"}))
    shutil.copy(folder / "unet/config.json", path / "unet/config.json")
    edit_json(path / "unet/config.json", ff_activation="gelu", trained_substitutions=["softmax_to_relu"])
    save_file({"conv_in.bias": torch.full((16,), 3.0)}, path / UNET)
    return path


def test_sibling_overlays_its_parent(sibling: Path, folder: Path) -> None:
    checkpoint, parent = open_checkpoint(sibling), open_checkpoint(folder)
    assert checkpoint.parent == folder
    unets = checkpoint.config.denoiser, parent.config.denoiser
    assert [unet.ff_activation for unet in unets if isinstance(unet, MDUNetConfig)] == ["gelu", "swish"]
    assert checkpoint.trained_substitutions == ("softmax_to_relu",)
    assert checkpoint.tokenizer_dir == folder / "tokenizer"
    assert checkpoint.weight_files("unet") == (folder / UNET, sibling / UNET)
    own, inherited = checkpoint.module("unet").state_dict(), parent.module("unet").state_dict()
    assert [name for name in own if not torch.equal(own[name], inherited[name])] == ["conv_in.bias"]
    assert equal_states(checkpoint.module("vae_decoder"), parent.module("vae_decoder"))
    checkpoint.check()


def test_sibling_hash_covers_both(sibling: Path, folder: Path) -> None:
    before = open_checkpoint(sibling).sha256()
    assert before != open_checkpoint(folder).sha256()
    edit_tensors(folder / UNET, lambda t: t["conv_out.bias"].add_(1.0))
    changed = open_checkpoint(sibling).sha256()
    assert changed != before
    edit_json(folder / "unet/config.json", ff_activation="gelu")  # the sibling has its own
    assert open_checkpoint(sibling).sha256() == changed


def test_sibling_is_found_from_a_relative_path(sibling: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = open_checkpoint(sibling).sha256()
    monkeypatch.chdir(sibling.parent)
    assert open_checkpoint(Path("gelu")).sha256() == expected


def test_sibling_tensors_must_fit(sibling: Path) -> None:
    save_file({"conv_in.bias": torch.zeros(17), "conv_inn.bias": torch.zeros(16)}, sibling / UNET)
    message = refusal(sibling, "unet")
    assert "conv_in.bias: stored [17], config says [16]" in message
    assert "conv_inn.bias (did you mean conv_in.bias?)" in message


@pytest.mark.parametrize(
    ("note", "said"),
    [
        ({}, "a path relative to its folder"),
        ({"parent": "/"}, "a path relative to its folder"),
        ({"parent": "../nowhere"}, "'../nowhere', which is not another folder"),
        ({"parent": "."}, "which is not another folder"),
        ({"parent": "../twin"}, "itself a sibling"),
    ],
)
def test_sibling_note_must_name_a_parent(sibling: Path, note: dict[str, str], said: str) -> None:
    shutil.copytree(sibling, sibling.parent / "twin")
    (sibling / "sibling.json").write_text(json.dumps(note))
    assert said in refusal(sibling)


# Keys and shapes


def test_every_key_problem_is_in_one_message(folder: Path) -> None:
    def damage(tensors: dict[str, Tensor]) -> None:
        tensors["up_blocks.0.resnets.0.conv_depthwise.weight"] = tensors.pop("up_blocks.0.resnets.0.conv_dw.weight")
        tensors["conv_in.weight"] = torch.zeros(16, 4, 3, 3)
        tensors["lora.alpha"] = torch.zeros(1)
        del tensors["conv_out.bias"]

    edit_tensors(folder / UNET, damage)
    message = refusal(folder, "unet")
    assert "unet: the weights do not fit unet/config.json (2 missing, 2 extra, 1 of another shape)" in message
    assert "up_blocks.0.resnets.0.conv_dw.weight [48, 1, 3, 3]" in message
    assert "conv_out.bias [8]" in message
    assert "conv_depthwise.weight (did you mean up_blocks.0.resnets.0.conv_dw.weight?)" in message
    assert "lora.alpha\n" in message
    assert "conv_in.weight: stored [16, 4, 3, 3], config says [16, 8, 3, 3]" in message


def test_long_lists_are_cut(folder: Path) -> None:
    edit_tensors(folder / UNET, lambda t: t.update({f"extra.{i}": torch.zeros(1) for i in range(50)}))
    lines = refusal(folder, "unet").splitlines()
    assert sum("extra." in line for line in lines) == 20
    assert lines[-1].strip() == "… and 30 more"


def test_check_names_all_components_at_once(folder: Path) -> None:
    edit_tensors(folder / UNET, lambda t: t.pop("conv_out.bias"))
    edit_tensors(folder / VAE, lambda t: t.pop("decoder.conv_out.bias"))
    edit_tensors(folder / TEXT, lambda t: t.pop("final_layer_norm.bias"))
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder).check()
    for name in ("unet: ", "vae_decoder: ", "text_encoder: ", "decoder.conv_out.bias", "final_layer_norm.bias"):
        assert name in str(caught.value)


@pytest.mark.parametrize("key", ["loss.weight", "decoder.up_blocks.9.conv.weight", "encodr.conv_in.bias"])
def test_unknown_vae_keys_are_extra(folder: Path, key: str) -> None:
    edit_tensors(folder / VAE, lambda t: t.update({key: torch.zeros(1)}))
    message = refusal(folder, "vae_decoder")
    assert "(0 missing, 1 extra" in message
    assert key in message


def test_names_cannot_write_to_the_terminal(folder: Path) -> None:
    edit_tensors(folder / UNET, lambda t: t.update({"\x1b[2Jevil": torch.zeros(1), "x" * 5000: torch.zeros(1)}))
    message = refusal(folder, "unet")
    assert "\x1b" not in message
    assert "\\x1b[2Jevil" in message
    assert max(map(len, message.splitlines())) < 300


def test_a_name_held_twice_is_refused(folder: Path) -> None:
    name = "final_layer_norm.bias"
    edit_tensors(folder / TEXT, lambda t: t.update({f"text_model.{name}": t[name].clone()}))
    assert f"{name} twice" in refusal(folder, "text_encoder")


def test_unknown_component_is_named(master: Path) -> None:
    assert "use one of text_encoder, unet, vae_decoder" in refusal(master, "decoder", UsageError)


# Values


def test_non_finite_values_are_counted(folder: Path) -> None:
    def damage(tensors: dict[str, Tensor]) -> None:
        tensors["conv_in.weight"].view(-1)[:3] = float("nan")
        tensors["conv_in.weight"].view(-1)[3] = float("-inf")
        tensors["conv_out.bias"][0] = float("inf")

    edit_tensors(folder / UNET, damage)
    message = refusal(folder, "unet")
    assert "unet: 2 tensors have values that are not finite" in message
    assert "conv_in.weight: 3 NaN and 1 Inf among 1152 values" in message
    assert "conv_out.bias: 0 NaN and 1 Inf among 8 values" in message
    open_checkpoint(folder).module("vae_decoder")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16])
def test_small_floats_are_read(folder: Path, dtype: torch.dtype) -> None:
    stored = open_checkpoint(folder).module("unet").get_parameter("conv_in.weight").clone()
    edit_tensors(folder / UNET, lambda t: t.update({"conv_in.weight": t["conv_in.weight"].to(dtype)}))
    read = open_checkpoint(folder).module("unet").get_parameter("conv_in.weight")
    assert torch.equal(read, stored.to(dtype).float()) and not torch.equal(read, stored)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fnuz])
def test_quantized_weights_are_refused(folder: Path, dtype: torch.dtype) -> None:
    edit_tensors(folder / UNET, lambda t: t.update({"conv_in.weight": t["conv_in.weight"].to(dtype)}))
    message = refusal(folder, "unet")
    assert f"stores conv_in.weight as {str(dtype)[6:]}" in message
    assert "before quantization" in message


# Files


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_safetensors(folder: Path, keep: int) -> None:
    content = (folder / UNET).read_bytes()
    (folder / UNET).write_bytes(content[:keep])
    message = refusal(folder, "unet")
    assert "diffusion_pytorch_model.safetensors is truncated or damaged" in message
    assert message.count("\n") == 0


@pytest.mark.parametrize("content", [b"\xff" * 100, b"<html>404</html>", b"\x02" + b"\0" * 7 + b"{}garbage"])
def test_garbage_for_safetensors(folder: Path, content: bytes) -> None:
    (folder / UNET).write_bytes(content)
    assert "copy or download it again" in refusal(folder, "unet")


def test_git_lfs_placeholders_are_named(folder: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"
    (folder / UNET).write_text(pointer)
    assert "git lfs pull" in refusal(folder, "unet")
    (folder / "tokenizer/vocab.json").write_text(pointer)
    assert "git lfs pull" in refusal(folder)


class RunsCode:
    """A pickle of this creates ``file`` when it is loaded as a plain pickle."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.file),))


@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_that_run_code_are_refused(folder: Path, zipped: bool) -> None:
    trap = folder / "code-ran"
    file = folder / "unet/diffusion_pytorch_model.bin"
    (folder / UNET).unlink()
    if zipped:
        torch.save({"conv_in.weight": RunsCode(trap)}, file)
    else:
        file.write_bytes(pickle.dumps({"conv_in.weight": RunsCode(trap)}, protocol=2))
    message = refusal(folder, "unet")
    assert "would run code when it is loaded" in message
    assert "mkdir" in message
    assert not trap.exists()
    pickle.loads(pickle.dumps(RunsCode(trap)))  # noqa: S301 (the control: the trap does work)
    assert trap.exists()


@pytest.mark.parametrize(
    "content", [b"", b"garbage, no pickle", b"PK\x03\x04 half a zip", b"\x80\x02}q\x00(X"], ids=range(4)
)
def test_damaged_torch_files(folder: Path, content: bytes) -> None:
    (folder / UNET).unlink()
    (folder / "unet/diffusion_pytorch_model.bin").write_bytes(content)
    assert "diffusion_pytorch_model.bin is truncated or damaged" in refusal(folder, "unet")


def test_changed_bytes_give_a_module_or_a_checkpoint_error(folder: Path) -> None:
    """Whatever three changed bytes do to a file, no other exception comes out."""
    small = {"conv_in.bias": torch.zeros(16)}
    file = folder / "unet/diffusion_pytorch_model.bin"
    for zipped in (True, False):
        torch.save(small, file, _use_new_zipfile_serialization=zipped)
        content, chance = file.read_bytes(), random.Random(0)  # noqa: S311 (no secret)
        for _ in range(150):
            damaged = bytearray(content)
            for _ in range(3):
                damaged[chance.randrange(len(damaged))] = chance.randrange(256)
            file.write_bytes(damaged)
            try:
                WeightSet((file,)).read()
            except CheckpointError as error:
                assert "\n" not in str(error)


def test_half_a_torch_file(folder: Path) -> None:
    file = folder / "unet/diffusion_pytorch_model.bin"
    torch.save(load_file(folder / UNET), file)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    (folder / UNET).unlink()
    assert "truncated or damaged" in refusal(folder, "unet")


@pytest.mark.parametrize("content", [{"state_dict": {"a": torch.zeros(1)}}, [torch.zeros(1)], {"epoch": 3}])
def test_torch_files_hold_a_flat_state_dict(folder: Path, content: Any) -> None:
    (folder / UNET).unlink()
    torch.save(content, folder / "unet/diffusion_pytorch_model.bin")
    assert "no flat table of names to tensors" in refusal(folder, "unet")


@pytest.mark.parametrize(
    "name", ["../stolen.safetensors", "/etc/passwd", "sub/x.safetensors", "..\\x.bin", "x.pkl", ""]
)
def test_index_stays_in_its_folder(folder: Path, name: str) -> None:
    index = shard(folder, UNET)
    shutil.copy(folder / VAE, folder / "stolen.safetensors")
    values = json.loads(index.read_text())
    values["weight_map"]["conv_in.weight"] = name
    index.write_text(json.dumps(values))
    assert f"{name!r}, which is not a file of its folder: refused" in refusal(folder, "unet")


def test_index_and_shards_must_agree(folder: Path) -> None:
    index = shard(folder, UNET)
    values = json.loads(index.read_text())
    shards = sorted(set(values["weight_map"].values()))
    values["weight_map"]["conv_in.weight"] = next(s for s in shards if s != values["weight_map"]["conv_in.weight"])
    index.write_text(json.dumps(values))
    assert "places conv_in.weight in" in refusal(folder, "unet")
    (index.parent / shards[1]).unlink()
    assert f"{shards[1]} is missing" in refusal(folder, "unet")
    index.write_text('{"weight_map": {}}')
    assert "holds no weight_map" in refusal(folder, "unet")


def test_missing_and_wrong_paths(tmp_path: Path, folder: Path) -> None:
    assert "nowhere does not exist" in refusal(tmp_path / "nowhere")
    assert "is a file: give the checkpoint folder" in refusal(folder / UNET)
    assert "does not exist" in refusal(folder / UNET / "below-a-file")
    assert "cannot be read" in refusal(tmp_path / ("x" * 300))
    (tmp_path / "empty").mkdir()
    assert "give a diffusers-style checkpoint folder" in refusal(tmp_path / "empty")


@pytest.mark.parametrize(
    "name",
    [
        "text_encoder/config.json",
        "unet/config.json",
        "vae/config.json",
        "scheduler/scheduler_config.json",
        "tokenizer/vocab.json",
        "tokenizer/merges.txt",
        UNET,
    ],
)
def test_missing_files_are_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    message = refusal(folder)
    assert name.split("/")[0] in message
    assert Path(name).name in message
    assert "\n" not in message


def test_missing_tokenizer_folder(folder: Path) -> None:
    shutil.rmtree(folder / "tokenizer")
    assert "tokenizer/vocab.json is missing" in refusal(folder)


# Configs


def test_numbers_that_json_lacks_matter_where_they_are_read_only(folder: Path) -> None:
    """As diffusers' solvers save them."""
    edit_json(folder / "scheduler/scheduler_config.json", lambda_min_clipped=-math.inf)
    open_checkpoint(folder)
    for file, field in (("unet", "norm_eps"), ("text_encoder", "layer_norm_eps")):
        path = folder / file / "config.json"
        before = path.read_text()
        edit_json(path, **{field: math.nan})
        assert f"{field} must be a finite number" in refusal(folder, error=ConfigError)
        path.write_text(before)


def test_the_epsilon_of_a_text_encoder_is_a_number(folder: Path) -> None:
    edit_json(folder / "text_encoder/config.json", layer_norm_eps="small")
    said = refusal(folder, error=ConfigError)
    assert said == "text_encoder/config.json: layer_norm_eps must be a finite number above 0, not 'small'"


@pytest.mark.seen("text encoder files that hold all of CLIP", "left out; any other key is named")
@pytest.mark.parametrize(
    ("part", "extra", "read"),
    [
        ("text_encoder/model.safetensors", "logit_scale", True),
        ("text_encoder/model.safetensors", "vision_model.encoder.layers.0.mlp.fc1.weight", True),
        ("text_encoder/model.safetensors", "visual_projection.weight", True),
        ("text_encoder/model.safetensors", "text_model.encoder.layers.0.mlp.fc3.weight", False),
        ("vae/diffusion_pytorch_model.safetensors", "decoder.lost.weight", False),
    ],
)
def test_files_with_extra_keys(folder: Path, part: str, extra: str, read: bool) -> None:
    save_file({**load_file(folder / part), extra: torch.zeros(2, 2)}, folder / part)
    if read:
        open_checkpoint(folder).check()
    else:
        with pytest.raises(CheckpointError, match=r"1 extra"):
            open_checkpoint(folder).check()


@pytest.mark.seen(
    "CLIP skip by a lower num_hidden_layers", "layers after the count are left out, which is said in a line"
)
def test_a_text_encoder_of_fewer_layers_than_its_file(folder: Path) -> None:
    """CLIP skip: the layers after the last one of the config are left out."""
    path = folder / "text_encoder/config.json"
    layers = json.loads(path.read_text())["num_hidden_layers"]
    whole = open_checkpoint(folder).module("text_encoder")
    edit_json(path, num_hidden_layers=layers - 1)
    assert open_checkpoint(folder).notes == (f"text_encoder: layers {layers - 1} of the file are left out (CLIP skip)",)
    module = open_checkpoint(folder).module("text_encoder")
    left_out = set(whole.state_dict()) - set(module.state_dict())
    assert (
        left_out == {name for name in whole.state_dict() if name.startswith(f"encoder.layers.{layers - 1}.")} != set()
    )
    edit_json(path, num_hidden_layers=layers + 1)
    assert "missing" in refusal(folder, "text_encoder")


@pytest.mark.seen("added tokens without rows in the text encoder", "refused in a line")
@pytest.mark.parametrize("file", ["added_tokens.json", "tokenizer.json"])
def test_added_tokens_need_rows_of_the_text_encoder(folder: Path, file: str) -> None:
    rows = json.loads((folder / "text_encoder/config.json").read_text())["vocab_size"]
    path = folder / "tokenizer" / file
    for number, is_there in ((rows - 1, True), (rows, False)):
        added: object = {"<thing>": number} if file == "added_tokens.json" else [{"id": number, "content": "<thing>"}]
        path.write_text(json.dumps(added if file == "added_tokens.json" else {"added_tokens": added}))
        if is_there:
            open_checkpoint(folder)
        else:
            assert f"adds <thing>, but the text encoder has only {rows} rows" in refusal(folder)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"sample_size": 8,', "is not valid JSON: EOF while parsing a value at line 1"),
        (b"", "is not valid JSON"),
        (b"[1, 2]", "must hold a JSON object {…}, not list"),
        (b"null", "must hold a JSON object {…}, not NoneType"),
        (b"\xff\xfe{}", "is not UTF-8 text"),
        (b"[" * 200_000, "is not valid JSON: recursion limit exceeded"),
        (b'{"a": "' + b"x" * (1 << 20) + b'"}', "is larger than 1,048,576 bytes"),
    ],
)
def test_unreadable_json(folder: Path, content: bytes, said: str) -> None:
    (folder / "unet/config.json").write_bytes(content)
    message = refusal(folder)
    assert said in message
    assert "unet/config.json" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("file", "changes", "said"),
    [
        ("unet/config.json", {"norm_num_groups": 0}, "norm_num_groups must be a whole number above 0, not 0"),
        ("unet/config.json", {"sample_size": "8"}, "sample_size must be a whole number above 0, not '8'"),
        ("unet/config.json", {"unified_inner": "false"}, "unified_inner must be bool, not 'false'"),
        ("unet/config.json", {"norm_eps": -1e-5}, "norm_eps must be a finite number above 0"),
        ("unet/config.json", {"block_out_channels": [16, "32", 48]}, "must be a list of 1 to 16 whole numbers"),
        ("unet/config.json", {"block_out_channels": 16}, "must be a list of 1 to 16 whole numbers"),
        ("unet/config.json", {"down_layers": True}, "down_layers must be a whole number above 0, not True"),
        ("unet/config.json", {"attention_heads": 4}, "unknown field attention_heads"),
        ("unet/config.json", {"ff_activation": "relu"}, "ff_activation='relu' is unknown; use one of gelu, swish"),
        ("unet/config.json", {"cross_attention_dim": 64}, "cross_attention_dim=64, but the text encoder's"),
        ("vae/config.json", {"act_fn": "relu"}, "only act_fn='silu' is supported"),
        ("vae/config.json", {"scaling_factor": 0}, "scaling_factor must be a finite number above 0, not 0"),
        ("vae/config.json", {"latent_channels": 4}, "they must be equal"),
        ("scheduler/scheduler_config.json", {"prediction_type": "flow"}, "prediction_type='flow' is unknown"),
        ("scheduler/scheduler_config.json", {"beta_end": "big"}, "scheduler_config.json: beta_end must be a finite"),
        ("text_encoder/config.json", {"hidden_size": "wide"}, "hidden_size must be a whole number above 0"),
    ],
)
def test_wrong_config_values(folder: Path, file: str, changes: dict[str, Any], said: str) -> None:
    edit_json(folder / file, **changes)
    message = refusal(folder, error=ConfigError)
    assert said in message
    assert "\n" not in message


@pytest.mark.parametrize("file", ["unet/config.json", "vae/config.json", "scheduler/scheduler_config.json"])
def test_any_value_of_any_field_is_read_or_refused(folder: Path, file: str) -> None:
    """No config value, however strange, gets past the error tree."""
    whole = json.loads((folder / file).read_text())
    built = {"unet/config.json": ["unet"], "vae/config.json": ["vae_decoder", "vae_encoder"]}.get(file, [])
    refused = 0
    strange: list[Any] = [None, -1, 0, 3, 1.5, 10**30, "x", "", True, [], [0], [3, 3, 3], {}]
    for field, value in itertools.product(whole, strange):
        (folder / file).write_text(json.dumps({**whole, field: value}))
        try:
            config = read_config(folder)
            for name in built:
                build_on_meta({**COMPONENTS, "vae_encoder": VAE_ENCODER}[name], config)
        except (CheckpointError, ConfigError) as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 7 * len(whole) - 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_attention_heads": 5}, "hidden_size 32 is no multiple of num_attention_heads"),
        ({"hidden_act": "sharp"}, "hidden_act 'sharp' is not supported"),
    ],
)
def test_text_encoder_that_cannot_be_built(folder: Path, changes: dict[str, Any], said: str) -> None:
    edit_json(folder / "text_encoder/config.json", **changes)
    message = refusal(folder, "text_encoder", ConfigError)
    assert message.startswith(f"text_encoder/config.json: {said}")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("file", "component", "changes"),
    [
        ("unet/config.json", "unet", {"block_out_channels": [16, 32, 480_000]}),
        ("unet/config.json", "unet", {"down_layers": 256, "up_layers": 256}),
        ("unet/config.json", "unet", {"time_embed_dim": 1 << 62}),
        ("text_encoder/config.json", "text_encoder", {"vocab_size": 10**9}),
        ("vae/config.json", "vae_decoder", {"block_out_channels": [8, 8, 16, 160_000]}),
    ],
)
def test_absurd_sizes_are_refused_before_allocation(
    folder: Path, file: str, component: str, changes: dict[str, Any]
) -> None:
    edit_json(folder / file, **changes)
    message = refusal(folder, component)
    assert "8 billion parameters or 10,000 tensors" in message
    assert file in message


@pytest.mark.parametrize(
    ("file", "field", "most"),
    [
        ("unet/config.json", "sample_size", 256),
        ("unet/config.json", "down_layers", 256),
        ("vae/config.json", "decoder_layers_per_block", 256),
        ("text_encoder/config.json", "num_hidden_layers", 256),
        ("text_encoder/config.json", "max_position_embeddings", 1024),
    ],
)
def test_absurd_counts_are_refused(folder: Path, file: str, field: str, most: int) -> None:
    edit_json(folder / file, **{field: 10**9})
    assert f"{field}=1000000000 is absurd (the limit is {most})" in refusal(folder)


def test_tokenizer_of_another_model(folder: Path) -> None:
    edit_json(folder / "tokenizer/vocab.json", **{"cat</w>": 600})
    message = refusal(folder)
    assert "token ids 0 to 600, but text_encoder/config.json has vocab_size=600" in message


# Cost


def test_loading_does_not_allocate_the_weights_twice(tmp_path: Path) -> None:
    """A 100 MB float32 UNet stays mapped: anonymous memory grows by far less than its size."""
    unet = MDUNetConfig(
        sample_size=8,
        block_out_channels=(64, 192, 320),
        cross_attention_dim=32,
        attention_head_dim=32,
        time_embed_dim=256,
    )
    write_checkpoint(tmp_path / "c", ModelConfig(CONFIG.text_encoder, unet, CONFIG.vae), seed=0, dtype="float32")
    script = """
import sys
from pathlib import Path
from md_export.checkpoint import open_checkpoint
def anonymous():
    rows = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(rows["RssAnon"].split()[0]) / 1024
checkpoint = open_checkpoint(Path(sys.argv[1]))
checkpoint.module("vae_decoder")
before = anonymous()
module = checkpoint.module("unet")
print(anonymous() - before, checkpoint.component_bytes("unet") / 2**20)
"""
    if not Path("/proc/self/status").exists():
        pytest.skip("reads Linux's /proc")
    done = subprocess.run([sys.executable, "-c", script, tmp_path / "c"], capture_output=True, text=True, check=True)
    grown, stored = map(float, done.stdout.split())
    assert stored > 90
    assert grown < stored / 3


def test_checkpoint_is_frozen(master: Path) -> None:
    checkpoint: Checkpoint = open_checkpoint(master)
    with pytest.raises(AttributeError):
        checkpoint.root = Path()  # type: ignore[misc]
