"""A small Stable Diffusion XL through every target: verified, audited, on the GPU."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

from md_export.checkpoint.architectures import write_checkpoint
from md_export.engine.export import export
from md_export.engine.generate import pictures_of_artifacts, pictures_of_checkpoint
from md_export.errors import CheckpointError
from md_export.parity.golden.folder import read_index
from md_export.parity.gpu import verify_on_gpu
from md_export.parity.judge import verify
from md_export.parity.metrics import snr_db
from md_export.parity.weights.audit import audit
from md_export.spec.manifest import read_manifest
from md_export.spec.recipe import Recipe
from md_export.spec.recipe_file import load_recipe
from md_export.spec.shipped_files import builtin_recipe
from small_models import XL_SHORT
from support import Exported, installed, made_once

pytestmark = pytest.mark.slow
# The first text encoder and the decoder are Stable Diffusion's; one export has all.
PARTS = ("text_encoder_2", "unet")
EXPORTS = {
    ("onnx", "fp16"): (),
    **{(target, "fp16"): PARTS for target in ("coreml", "tflite")},
    **{(target, "int8"): PARTS for target in ("coreml", "tflite", "onnx")},
}


def recipe_of(target: str, precision: str) -> Recipe:
    """The one that ships, on two prompts; all of the model in two guided steps."""
    recipe, parts = load_recipe(builtin_recipe(target, precision)), EXPORTS[target, precision]
    golden = dataclasses.replace(recipe.golden, prompts=recipe.golden.prompts[:2])
    recipe = dataclasses.replace(recipe, golden=golden)
    return recipe.widened(parts).narrowed(parts) if parts else recipe.sampled(2, 5.0)


@pytest.fixture(scope="module")
def xl_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint with fewer layers than the one of all tests."""
    out = tmp_path_factory.mktemp("checkpoints") / "xl"
    write_checkpoint(out, XL_SHORT, seed=7)
    return out


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory, xl_checkpoint: Path) -> Exported:
    """``large("onnx", "int8")`` → an export of the small Stable Diffusion XL. Do not change it."""

    def make(target: str, precision: str, out: Path) -> None:
        installed(target)
        export(recipe_of(target, precision), xl_checkpoint, out)

    return made_once(tmp_path_factory, "large", make)


@pytest.mark.seen("SDXL through Core ML, TFLite and ONNX", "verified and audited at fp16 and int8")
@pytest.mark.parametrize(("target", "precision"), EXPORTS)
def test_every_weight_is_proven(large: Exported, xl_checkpoint: Path, target: str, precision: str) -> None:
    """Verified it is, or there would be no export."""
    found = audit(large(target, precision), xl_checkpoint)
    assert found.failures == ()
    for component in found.components:
        assert component.as_requested == component.promised > 0.4 * component.total
        assert component.proven_share > 0.99


def test_artifacts_make_the_pictures_of_torch(large: Exported, xl_checkpoint: Path) -> None:
    out, pair = large("onnx", "fp16"), ("a red apple", 1)
    manifest = read_manifest(out)
    assert (manifest.family, read_index(out / "golden").family, manifest.zeros_for_empty) == ("sdxl", "sdxl", True)
    assert manifest.recipe.components == ("text_encoder", "text_encoder_2", "unet", "vae_decoder")
    (wanted,) = pictures_of_checkpoint(xl_checkpoint, [pair], sampler=manifest.recipe.sampler)
    (made,) = pictures_of_artifacts(out, [pair])
    (other,) = pictures_of_artifacts(out, [pair], negative="blue")
    assert snr_db(made, wanted) > 40 > snr_db(other, wanted)
    assert not np.array_equal(made, other)


def test_the_second_tokenizer_is_held_against_golden_prompts(large: Exported, tmp_path: Path) -> None:
    out = Path(shutil.copytree(large("onnx", "fp16"), tmp_path / "out"))
    assert verify(out).passed
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        file = out / "tokenizer_2" / name
        file.write_text(file.read_text().replace('"pad_token": "!"', '"pad_token": "<|endoftext|>"'))
    assert any("tokenizer_2/ gives other ids" in fault for fault in verify(out).failures)


def test_the_swift_layout_is_refused_before_any_work(xl_checkpoint: Path, tmp_path: Path) -> None:
    installed("coreml")
    recipe = dataclasses.replace(load_recipe(builtin_recipe("coreml", "fp16")), layout="swift")
    with pytest.raises(CheckpointError, match="--layout swift is for one text encoder and a UNet"):
        export(recipe, xl_checkpoint, tmp_path / "out")


@pytest.mark.seen("SDXL on the GPU engine", "all resident")
@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.usefixtures("gpu_driver")
def test_all_of_it_runs_on_the_gpu(large: Exported, precision: str) -> None:
    result = verify_on_gpu(large("tflite", precision), None, limit_s=120)
    assert result.failures == ()
    assert all(run.resident and run.on_cpu == 0 < run.ops for run in (item.engine for item in result.components))
