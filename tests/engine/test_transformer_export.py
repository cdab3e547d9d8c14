"""PixArt's and DiT's folders through every target: verified, audited, on the GPU; and what is wrong is found."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

from artifact_edits import change, one_value
from md_export.engine.export import export
from md_export.engine.generate import pictures_of_artifacts, pictures_of_checkpoint
from md_export.parity.gpu import verify_on_gpu
from md_export.parity.judge import verify
from md_export.parity.metrics import compare
from md_export.parity.weights.audit import audit
from md_export.spec.manifest import read_manifest
from md_export.spec.recipe import Recipe
from md_export.spec.recipe_file import load_recipe
from md_export.spec.shipped_files import builtin_recipe
from mutations import flip_block, rehash, weight_file
from support import Exported, installed, made_once

pytestmark = pytest.mark.slow
FAMILIES = ("pixart", "dit")
TARGETS = ("onnx", "coreml", "tflite")
# The VAE is Stable Diffusion's, which its own tests export.
PARTS = {"pixart": ("text_encoder", "transformer"), "dit": ("transformer",)}


def recipe_of(target: str, precision: str) -> Recipe:
    """The one that ships, on few prompts."""
    recipe = load_recipe(builtin_recipe(target, precision))
    return dataclasses.replace(recipe, golden=dataclasses.replace(recipe.golden, prompts=recipe.golden.prompts[:4]))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, pixart_checkpoint: Path, dit_checkpoint: Path) -> Exported:
    """``made("pixart-onnx", "int8")``: an export; that of ONNX in float16 has all parts. Do not change it."""
    folders = {"pixart": pixart_checkpoint, "dit": dit_checkpoint}

    def make(name: str, precision: str, out: Path) -> None:
        family, target = name.split("-")
        installed(target)
        recipe = recipe_of(target, precision)
        whole = (target, precision) == ("onnx", "fp16")
        export(recipe if whole else recipe.widened(PARTS[family]).narrowed(PARTS[family]), folders[family], out)

    return made_once(tmp_path_factory, "transformers", make)


@pytest.mark.seen("PixArt and DiT through Core ML, TFLite and ONNX", "verified and audited at fp16 and int8")
@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_is_proven(
    made: Exported, request: pytest.FixtureRequest, family: str, target: str, precision: str
) -> None:
    """Verified it is, or there would be no export."""
    out = made(f"{family}-{target}", precision)
    assert read_manifest(out).family == family
    found = audit(out, request.getfixturevalue(f"{family}_checkpoint"))
    assert found.failures == ()
    assert {part.component for part in found.components} >= set(PARTS[family])
    for component in found.components:
        assert component.missing == ()
        # Of a small text encoder a third is the constant of all distances.
        assert component.as_requested == component.promised > 0.3 * component.total
        assert component.proven_share > 0.98


@pytest.mark.parametrize("family", FAMILIES)
def test_one_wrong_weight_is_named(made: Exported, request: pytest.FixtureRequest, tmp_path: Path, family: str) -> None:
    out = Path(shutil.copytree(made(f"{family}-onnx", "int8"), tmp_path / "onnx"))
    change(out, "transformer", one_value)
    found = audit(out, request.getfixturevalue(f"{family}_checkpoint"))
    assert any("values are off" in fault for fault in found.failures)


def test_damage_fails_parity(made: Exported, tmp_path: Path) -> None:
    out = Path(shutil.copytree(made("pixart-onnx", "fp16"), tmp_path / "onnx"))
    assert verify(out).passed
    flip_block(weight_file(out, "text_encoder"), size=1 << 12)
    rehash(out)
    assert any(fault.startswith("text_encoder: ") for fault in verify(out).failures)


@pytest.mark.parametrize(("family", "prompt", "other"), [("pixart", "a red cat", "a dog"), ("dit", "tiger cat", "7")])
def test_the_export_makes_the_checkpoints_pictures(
    made: Exported, request: pytest.FixtureRequest, family: str, prompt: str, other: str
) -> None:
    """From the export alone, with its tokenizer or its names of classes."""
    (picture,) = pictures_of_artifacts(made(f"{family}-onnx", "fp16"), [(prompt, 5)])
    wanted, wrong = pictures_of_checkpoint(request.getfixturevalue(f"{family}_checkpoint"), [(prompt, 5), (other, 5)])
    assert compare(picture, wanted).psnr_db > compare(picture, wrong).psnr_db + 10


@pytest.mark.seen("PixArt and DiT on the GPU engine", "all resident")
@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.usefixtures("gpu_driver")
def test_all_of_it_runs_on_the_gpu(made: Exported, family: str, precision: str) -> None:
    result = verify_on_gpu(made(f"{family}-tflite", precision), None, limit_s=120)
    assert result.failures == ()
    assert all(run.resident and run.on_cpu == 0 < run.ops for run in (item.engine for item in result.components))
