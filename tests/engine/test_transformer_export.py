"""PixArt's and DiT's folders through every target: verified, audited, on the GPU; and what is wrong is found."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import T5EncoderModel

from artifact_edits import change, one_value
from in_process import in_process
from md_export.diagnose.estimate import command
from md_export.engine.export import export
from md_export.engine.generate import pictures_of_artifacts, pictures_of_checkpoint
from md_export.errors import CheckpointError, ParityError
from md_export.models.t5_encoder import SHARE
from md_export.parity.gpu import verify_on_gpu
from md_export.parity.judge import verify
from md_export.parity.metrics import compare
from md_export.parity.selftest.run import SelfTest, auditor, try_all
from md_export.parity.selftest.table import MUTATIONS
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


# What the self-test does where a family of text and a UNet was thought of first, and what it has no use for here.
TRIED = {
    "swapped outputs of two prompts",
    "swapped inputs of two prompts",
    "the prompt's difference lost",
    "last layer negated",
    "float16 overflow behind a softmax",
    "two words of the tokenizer exchanged",
    "swapped inputs",
}


@pytest.mark.seen("PixArt and DiT: self-test of the gate", "words, names of classes, prompts exchanged: all noticed")
@pytest.mark.parametrize(("family", "text"), [("pixart", "text_encoder"), ("dit", "vae_decoder")])
def test_the_self_test_asks_the_graph(made: Exported, request: pytest.FixtureRequest, family: str, text: str) -> None:
    checkpoint = request.getfixturevalue(f"{family}_checkpoint")
    mutations = [mutation for mutation in MUTATIONS if mutation.name in TRIED]
    rows = list(try_all(made(f"{family}-onnx", "fp16"), auditor(checkpoint), mutations))
    assert SelfTest("onnx", "fp16", 0.0, tuple(rows)).failures == ()
    tried = {row.mutation: row for row in rows}
    assert tried["swapped outputs of two prompts"].component == text
    assert tried["the prompt's difference lost"].component == tried["swapped inputs"].component == "transformer"
    skipped = {row.mutation for row in rows if row.verdict == "not applicable"}
    assert skipped <= {"the prompt's difference lost", "float16 overflow behind a softmax"}


def test_an_estimate_counts_the_steps_of_a_transformer(made: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    out = made("pixart-onnx", "fp16")
    manifest: Any = read_manifest(out)
    in_three: Any = dataclasses.replace(manifest, steps=SimpleNamespace(steps=range(3)))
    monkeypatch.setattr(command, "read_manifest", lambda _: in_three)
    found = {item.component: item.calls for item in command.estimate(out, "galaxy-s24").components}
    assert found == {"text_encoder": 1, "transformer": 3, "vae_decoder": 1}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_swift_layout_is_refused_before_any_work(
    request: pytest.FixtureRequest, tmp_path: Path, family: str
) -> None:
    installed("coreml")
    recipe = dataclasses.replace(load_recipe(builtin_recipe("coreml", "fp16")), layout="swift")
    said = "^[^\n]*--layout swift is for one text encoder and a UNet, but this checkpoint has [^\n]*transformer[^\n]*$"
    with pytest.raises(CheckpointError, match=said):
        export(recipe, request.getfixturevalue(f"{family}_checkpoint"), tmp_path / "out")


def test_core_ai_of_pixart(pixart_checkpoint: Path, tmp_path: Path) -> None:
    """It adds biases to the tables behind them, which the audit knows; and one wrong value is named."""
    installed("coreai")
    recipe, out = recipe_of("coreai", "fp16"), tmp_path / "out"
    export(recipe.widened(("transformer",)).narrowed(("transformer",)), pixart_checkpoint, out)
    found = audit(out, pixart_checkpoint)
    assert found.failures == ()
    assert found.components[0].missing == ()
    change(out, "transformer", one_value)
    assert any("values are off" in fault for fault in audit(out, pixart_checkpoint).failures)


def loud(checkpoint: Path, out: Path) -> Path:
    """A copy whose T5 has activations beyond float16's range, as the large ones have (transformers' issue 9295)."""
    shutil.copytree(checkpoint, out)
    file = out / "text_encoder" / "model.safetensors"
    factors = {"wo.weight": 20_000, "wi_1.weight": 60}
    tensors = {
        name: tensor * next((factor for end, factor in factors.items() if name.endswith(end)), 1)
        for name, tensor in load_file(file).items()
    }
    save_file(tensors, file, {"format": "pt"})
    return out


@pytest.mark.seen("T5 with activations beyond float16's range, as the large ones have", "float16 holds a share of each")
@pytest.mark.parametrize("target", ["onnx", "coreml"])
def test_t5_beyond_float16(
    pixart_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    """Verified; and without the share of the residual stream that the form keeps, rejected as not finite."""
    installed(target)
    checkpoint = loud(pixart_checkpoint, tmp_path / "loud")
    theirs = T5EncoderModel.from_pretrained(checkpoint / "text_encoder")
    with torch.no_grad():
        states = theirs(torch.arange(3, 90)[None], output_hidden_states=True).hidden_states
    assert 1e5 < states[-2].abs().max() < 65504 / SHARE
    recipe = recipe_of(target, "fp16").narrowed(("text_encoder",))
    with in_process():
        monkeypatch.setenv("MD_EXPORT_CACHE", str(tmp_path / "right"))
        export(recipe, checkpoint, tmp_path / "out")
        monkeypatch.setattr("md_export.models.t5_encoder.SHARE", 1.0)
        monkeypatch.setenv("MD_EXPORT_CACHE", str(tmp_path / "wrong"))
        with pytest.raises(ParityError, match="text_encoder"):
            export(recipe, checkpoint, tmp_path / "other")


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
