"""Every sampling method by the artifacts of two targets, without guidance: their UNets take one prompt at a time."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

from md_export.checkpoint import open_checkpoint
from md_export.engine.export import export
from md_export.engine.generate import pictures_of_artifacts, pictures_of_checkpoint
from md_export.models.sampling.sampler import steps_of
from md_export.parity.judge import verify
from md_export.parity.metrics import compare
from md_export.spec.manifest import read_manifest, write_manifest
from md_export.spec.names import METHODS, Method
from md_export.spec.recipe_file import load_recipe
from md_export.spec.sampler import SamplerPlan
from md_export.spec.shipped_files import builtin_recipe

REQUEST = [("a large red circle on the left, white background", 0)]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["onnx", "tflite"])
def out(request: pytest.FixtureRequest, other_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By LCM, which adds noise in its steps and has no guidance."""
    torch.set_num_threads(1)
    recipe = load_recipe(builtin_recipe(request.param, "fp32")).sampled(3, None, "lcm")
    folder = tmp_path_factory.mktemp("export") / "out"
    export(recipe, other_checkpoint, folder)
    return folder


def test_the_export_is_verified(out: Path) -> None:
    manifest, result = read_manifest(out), verify(out)
    assert result.failures == ()
    assert manifest.steps is not None
    assert (manifest.steps.method, manifest.steps.is_guided) == ("lcm", False)
    assert [spec.shape[0] for spec in manifest.entry_for("unet").inputs] == [1, 1, 1]


@pytest.mark.seen("sampler: artifacts of two targets", "pictures equal torch's, for every method")
@pytest.mark.parametrize("method", METHODS)
def test_pictures_are_those_of_torch(out: Path, other_checkpoint: Path, tmp_path: Path, method: Method) -> None:
    """The same artifacts serve all methods; the constants in the manifest say which."""
    plan, copy = SamplerPlan(3, method, 1.0), Path(shutil.copytree(out, tmp_path / "out"))
    manifest = read_manifest(copy)
    steps = steps_of(open_checkpoint(other_checkpoint).config, plan)
    recipe = dataclasses.replace(manifest.recipe, sampler=plan)
    write_manifest(dataclasses.replace(manifest, steps=steps, recipe=recipe), copy)
    (wanted,) = pictures_of_checkpoint(other_checkpoint, REQUEST, sampler=plan)
    (made,) = pictures_of_artifacts(copy, REQUEST)
    assert compare(made, wanted).psnr_db > 60
    (other,) = pictures_of_checkpoint(other_checkpoint, REQUEST, sampler=SamplerPlan(2, method, 1.0))
    assert compare(made, other).psnr_db < 50
