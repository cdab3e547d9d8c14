"""Which module is to blame: planted faults are found as the first, and an untouched artifact names nobody."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cli.test_cli import md_export
from md_export.diagnose.attribution.attribute import Attribution, attribute, blame
from md_export.engine.hops import Part, opened
from md_export.errors import ArtifactError
from module_faults import scrambled, weight_places
from mutations import rehash
from support import ONE_EACH, Exported

FAULTS = 10


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads cost more than they bring on maps of 8×8."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Opened:
    """One component of an export, prepared once."""

    def __init__(self, out: Path, component: str, checkpoint: Path) -> None:
        self.manifest, self.part, self.cases = opened(Part(out, component, checkpoint))
        self.entry = self.manifest.entry_for(component)
        self.path = out / self.entry.file

    def blame(self) -> Attribution:
        """On the first golden case alone."""
        return blame(self.manifest, self.entry, self.path, self.part, self.cases[:1])


@pytest.mark.slow
@pytest.mark.parametrize(("target", "precision"), ONE_EACH)
def test_ten_of_ten(copy_of: Exported, nano: Path, target: str, precision: str) -> None:
    unet = Opened(copy_of(target, precision), "unet", nano)
    places = weight_places(unet.path)
    # Of all convolutions and linears of the module: none is left out because it would not be found.
    matrices = [path for path, layer in unet.part.module.named_modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    assert places.keys() >= set(matrices)
    for path in np.random.default_rng(len(target)).choice(matrices, FAULTS, replace=False):
        with scrambled(places[path]):
            found = unet.blame()
        assert found.first is not None
        assert found.first.path == path
        assert found.worst[0].path == path or found.worst[0].local_snr_db < found.first.local_snr_db
        assert any(path in line for line in found.advice)


@pytest.mark.parametrize(("target", "precision"), ONE_EACH)
@pytest.mark.parametrize("component", ["text_encoder", "unet", "vae_decoder"])
def test_an_untouched_artifact_names_nobody(
    exported: Exported, nano: Path, target: str, precision: str, component: str
) -> None:
    found = Opened(exported(target, precision), component, nano).blame()
    assert found.first is None
    assert found.advice == ()
    assert found.matched >= 0.95 * found.leaves
    assert found.modules[-1].path == ""
    # What comes out of the walk is what the gate sees.
    assert found.modules[-1].cumulative_snr_db == pytest.approx(found.snr_db, abs=3)


def test_the_first_of_two(copy_of: Exported, nano: Path) -> None:
    unet = Opened(copy_of("onnx", "int8"), "unet", nano)
    places = weight_places(unet.path)
    early, late = "down_blocks.0.resnets.0.conv2", "up_blocks.2.resnets.1.conv1"
    with scrambled(places[late]), scrambled(places[early]):
        found = unet.blame()
    assert found.first is not None
    assert found.first.path == early
    assert {early, late} == {item.path for item in found.worst[:2]}


def test_the_command(copy_of: Exported, tmp_path: Path) -> None:
    out = copy_of("onnx", "int8")
    path = "decoder.mid_block.resnets.0.conv1"
    with scrambled(weight_places(out / "vae_decoder.onnx")[path]):
        rehash(out)
        result = md_export("attribute", out / "vae_decoder.onnx", "--json", tmp_path / "found.json")
    assert result.returncode == 0, result.stderr
    assert f"first to diverge: {path} (Conv2d)" in " ".join(result.stdout.split())
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["first"]["path"] == path
    assert [hop["name"] for hop in found["hops"]] == ["rewritten", "quantized", "runtime"]
    assert found["hops"][0]["snr_db"] > 90 > 20 > found["hops"][1]["snr_db"]


def test_an_artifact_of_another_checkpoint(exported: Exported, other_checkpoint: Path) -> None:
    with pytest.raises(ArtifactError, match="name the one that they were exported from"):
        attribute(exported("onnx", "int8") / "unet.onnx", other_checkpoint)


def test_a_file_that_the_manifest_does_not_know(copy_of: Exported, nano: Path) -> None:
    out = copy_of("onnx", "int8")
    (out / "unet.onnx").rename(out / "other.onnx")
    with pytest.raises(ArtifactError, match=r"lists no artifact other\.onnx"):
        attribute(out / "other.onnx", nano)
