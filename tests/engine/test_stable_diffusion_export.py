"""Stable Diffusion's folders through every target: verified, audited, on the GPU; and what is wrong is found."""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path

import pytest

from artifact_edits import change, one_value
from md_export.checkpoint import open_checkpoint
from md_export.engine.export import export
from md_export.parity.gpu import verify_on_gpu
from md_export.parity.judge import verify
from md_export.parity.weights.audit import audit, audit_component
from md_export.parity.weights.reference import prepare_reference
from md_export.spec.manifest import read_manifest
from md_export.spec.recipe import Recipe
from md_export.spec.recipe_file import load_recipe
from md_export.spec.shipped_files import builtin_recipe
from mutations import flip_block, rehash, weight_file
from support import Exported, installed, made_once

pytestmark = pytest.mark.slow
# A converter's time follows the number of nodes. The text encoder is MobileDiffusion's; one export has all three.
EXPORTS = {
    ("coreml", "fp16"): ("unet", "vae_decoder"),
    ("tflite", "fp16"): ("unet", "vae_decoder"),
    ("onnx", "fp16"): ("text_encoder", "unet", "vae_decoder"),
    **{(target, "int8"): ("unet",) for target in ("coreml", "tflite", "onnx")},
}


def recipe_of(target: str, precision: str) -> Recipe:
    """The one that ships, on two prompts."""
    recipe = load_recipe(builtin_recipe(target, precision))
    golden = dataclasses.replace(recipe.golden, prompts=recipe.golden.prompts[:2])
    return dataclasses.replace(recipe, golden=golden).narrowed(EXPORTS[target, precision])


@pytest.fixture(scope="module")
def stable(tmp_path_factory: pytest.TempPathFactory, stable_checkpoint: Path) -> Exported:
    """``stable("onnx", "int8")`` → an export of the small Stable Diffusion. Do not change it."""

    def make(target: str, precision: str, out: Path) -> None:
        installed(target)
        export(recipe_of(target, precision), stable_checkpoint, out)

    return made_once(tmp_path_factory, "stable", make)


@pytest.mark.parametrize(("target", "precision"), EXPORTS)
def test_every_weight_is_proven(stable: Exported, stable_checkpoint: Path, target: str, precision: str) -> None:
    """Verified it is, or there would be no export."""
    found = audit(stable(target, precision), stable_checkpoint)
    assert found.failures == ()
    for component in found.components:
        assert component.as_requested == component.promised > 0.4 * component.total
        assert component.proven_share > 0.99


@pytest.mark.parametrize("target", ["coreml", "tflite", "onnx"])
def test_one_wrong_weight_is_named(stable: Exported, stable_checkpoint: Path, tmp_path: Path, target: str) -> None:
    out = Path(shutil.copytree(stable(target, "int8"), tmp_path / target))
    change(out, "unet", one_value)
    manifest = read_manifest(out)
    reference = prepare_reference(open_checkpoint(stable_checkpoint), manifest.recipe, "unet", out / "golden")
    (fault,) = audit_component(out, manifest, manifest.entry_for("unet"), reference).faults
    assert re.search(r"(resnets|attentions|samplers)\.\d\S* stored as int8: \d+ of \d+ values are off", fault)


def test_damage_fails_parity(stable: Exported, tmp_path: Path) -> None:
    out = Path(shutil.copytree(stable("onnx", "fp16"), tmp_path / "onnx"))
    assert verify(out).passed
    flip_block(weight_file(out, "unet"), size=1 << 16)
    rehash(out)
    assert any(fault.startswith("unet: ") for fault in verify(out).failures)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.usefixtures("gpu_driver")
def test_all_of_it_runs_on_the_gpu(stable: Exported, precision: str) -> None:
    result = verify_on_gpu(stable("tflite", precision), None, limit_s=120)
    assert result.failures == ()
    assert all(run.resident and run.on_cpu == 0 < run.ops for run in (item.engine for item in result.components))
