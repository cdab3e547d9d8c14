"""Pages of mapped weights are given back where that loses nothing, and only there."""

from __future__ import annotations

import resource
import sys
import weakref
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from md_export.checkpoint import open_checkpoint
from md_export.checkpoint.architectures import init_checkpoint
from md_export.models.families import family_of
from md_export.models.sampling.generate import OneAtATime
from md_export.system import memory
from md_export.system.memory import in_a_file, release_pages, release_tensors, release_weights

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems keep pages as they see fit")
MEGABYTE = 1 << 20


def of_files() -> float:
    """Megabytes of files that are resident in this process."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssFile"].split()[0]) / 1024


@pytest.fixture
def mapped(tmp_path: Path) -> Tensor:
    """64 MB of a file, all of it read."""
    path = tmp_path / "x.safetensors"
    save_file({"x": torch.arange(16 * MEGABYTE, dtype=torch.float32)}, path)
    with safe_open(path, framework="pt", device="cpu") as file:
        tensor: Tensor = file.get_tensor("x")
    assert torch.isfinite(tensor).all()
    return tensor


def test_what_was_read_is_given_back_and_read_again(mapped: Tensor) -> None:
    before = of_files()
    release_tensors([mapped])
    assert before - of_files() > 60
    assert torch.equal(mapped, torch.arange(16 * MEGABYTE, dtype=torch.float32))


def test_what_was_written_is_kept(mapped: Tensor) -> None:
    """Of a page that somebody wrote to the mapping has the only copy."""
    mapped[5 * MEGABYTE] = -1.0
    before = of_files()
    assert not release_pages(mapped.data_ptr(), mapped.nbytes)
    assert before - of_files() < 1
    assert mapped[5 * MEGABYTE] == -1.0


def test_memory_of_no_file_is_kept() -> None:
    tensor = torch.ones(MEGABYTE)
    assert not release_pages(tensor.data_ptr(), tensor.nbytes)
    assert tensor.sum() == MEGABYTE
    assert not release_pages(tensor.data_ptr(), 10), "less than a page"


def test_a_copy_in_a_file_is_given_back_and_read_again() -> None:
    tensor = torch.arange(16 * MEGABYTE, dtype=torch.float32)
    copy = in_a_file(tensor)
    assert torch.equal(copy, tensor)
    before = of_files()
    release_tensors([copy])
    assert before - of_files() > 60
    assert torch.equal(copy, tensor)


def test_without_room_for_a_file_memory_is_used() -> None:
    tensor = torch.ones(MEGABYTE)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        assert in_a_file(tensor) is tensor
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert in_a_file(tensor) is not tensor
    assert in_a_file(tensor[:1000]).data_ptr() == tensor.data_ptr(), "not worth it"


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_checkpoint_s_module_holds_no_weights_until_it_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    """What is not stored in float32 is converted into a scratch file, if it is large."""
    monkeypatch.setattr(memory, "_WORTH_A_FILE", 4096)
    checkpoint = open_checkpoint(init_checkpoint(tmp_path / "nano", "nano", 0, dtype))
    checkpoint.module("unet")
    before = of_files()
    module = checkpoint.module("unet")
    held = of_files() - before
    weights = sum(parameter.nbytes for parameter in module.parameters()) / MEGABYTE
    assert sum(float(parameter.sum()) for parameter in module.parameters())
    assert of_files() - before > held + 0.8 * weights
    release_weights(module)
    assert of_files() - before < held + 0.2 * weights


def test_runners_come_one_at_a_time(nano: Path) -> None:
    checkpoint, loaded = open_checkpoint(nano), list[str]()

    def load(name: str) -> nn.Module:
        loaded.append(name)
        return checkpoint.module(name)

    held = OneAtATime(family_of(checkpoint.config), load, checkpoint.config)
    assert held["unet"] is held["unet"]
    assert [held[name].outputs[0].name for name in checkpoint.components] == [
        "last_hidden_state",
        "out_sample",
        "image",
    ]
    assert loaded == ["unet", "text_encoder", "unet", "vae_decoder"]
    before = weakref.ref(next(held["vae_decoder"].module.parameters()))
    assert before() is not None
    assert held["unet"]
    assert before() is None, "the one before is dropped"
