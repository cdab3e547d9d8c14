"""The road itself: the nano checkpoint through every target and precision, executed and judged."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from md_export.checkpoint import open_checkpoint
from md_export.engine.export import export
from md_export.engine.generate import pictures_of_artifacts, pictures_of_checkpoint
from md_export.errors import ConversionError, GoldenError, OutputError, ParityError, RewriteError
from md_export.parity.metrics import compare
from md_export.spec.manifest import read_manifest
from md_export.spec.recipe import Recipe
from md_export.spec.recipe_file import load_recipe
from md_export.spec.shipped_files import builtin_recipe
from md_export.system.files import sha256_of
from md_export.targets import TARGETS
from support import ONE_EACH, Exported, made_once

# Apple's CPU runtime takes a minute for the golden cases in float16; tests/targets/coreai has all of its precisions.
IN_FULL = tuple(target for target in TARGETS if target != "coreai")
ALL = [*((target, precision) for target in IN_FULL for precision in ("fp32", "fp16", "int8")), ("coreai", "int8")]


@pytest.mark.parametrize(("target", "precision"), ALL)
def test_export_is_verified_and_described(exported: Exported, nano: Path, target: str, precision: str) -> None:
    out = exported(target, precision)
    manifest = read_manifest(out)
    assert manifest.checkpoint_sha256 == open_checkpoint(nano).sha256()
    assert [entry.component for entry in manifest.artifacts] == ["text_encoder", "unet", "vae_decoder"]
    assert (out / "tokenizer" / "vocab.json").is_file()
    for entry in manifest.artifacts:
        assert entry.parity is not None
        assert entry.parity.snr_db >= manifest.recipe.tolerances[entry.component].snr_db
        assert entry.sha256 == sha256_of(out / entry.file)
        assert entry.measured.seconds > 0
        assert entry.measured.peak_resident_bytes > 1e7
        assert entry.inputs
        assert entry.outputs
    assert manifest.picture_psnr_db is not None
    assert manifest.picture_psnr_db >= manifest.recipe.picture_psnr_db


@pytest.mark.parametrize("target", IN_FULL)
def test_lower_precision_is_smaller(exported: Exported, target: str) -> None:
    sizes = {p: [e.bytes for e in read_manifest(exported(target, p)).artifacts] for p in ("fp32", "fp16", "int8")}
    for whole, half, quarter in zip(sizes["fp32"], sizes["fp16"], sizes["int8"], strict=True):
        assert whole > 1.5 * half
        assert half > 1.3 * quarter


@pytest.fixture(scope="session")
def exported_other(tmp_path_factory: pytest.TempPathFactory, other_checkpoint: Path) -> Exported:
    """As ``exported``, of the checkpoint of other widths."""

    def make(target: str, precision: str, out: Path) -> None:
        export(load_recipe(builtin_recipe(target, precision)), other_checkpoint, out)

    return made_once(tmp_path_factory, "other", make)


@pytest.mark.parametrize(("target", "precision"), ONE_EACH)
def test_same_checkpoint_same_bytes(
    exported_other: Exported,
    other_checkpoint: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    target: str,
    precision: str,
) -> None:
    """Of every component; the second time in processes that have nothing in common with those of the first."""
    first, again = exported_other(target, precision), tmp_path / "again"
    request.getfixturevalue("other_server")
    request.getfixturevalue("own_cache")
    export(load_recipe(builtin_recipe(target, precision)), other_checkpoint, again, first / "golden")
    names = [entry.file for entry in read_manifest(first).artifacts]
    assert [sha256_of(again / name) for name in names] == [sha256_of(first / name) for name in names]
    assert undated(again) == undated(first)


def undated(out: Path) -> dict[str, object]:
    """The manifest without what was measured while it was made."""
    manifest: dict[str, object] = json.loads((out / "manifest.json").read_text())
    entries = manifest["artifacts"]
    assert isinstance(entries, list)
    for entry in entries:
        del entry["measured"]
    return manifest


@pytest.mark.parametrize(("target", "precision"), ONE_EACH)
def test_other_widths_need_no_code(exported_other: Exported, target: str, precision: str) -> None:
    """It was judged as it was made."""
    manifest = read_manifest(exported_other(target, precision))
    assert all(entry.parity is not None for entry in manifest.artifacts)
    assert manifest.artifacts[1].inputs[2].shape == (1, 77, 48)


@pytest.mark.parametrize(("target", "precision"), ONE_EACH)
def test_artifacts_make_the_picture_that_torch_makes(
    exported: Exported, nano: Path, target: str, precision: str
) -> None:
    out = exported(target, precision)
    requests = [
        ("a small blue star at the top, night background", 3),
        ("a large red circle on the left, white background", 4),
    ]
    made, wanted = pictures_of_artifacts(out, requests), pictures_of_checkpoint(nano, requests)
    least = read_manifest(out).recipe.picture_psnr_db
    assert all(compare(got, want).psnr_db >= least for got, want in zip(made, wanted, strict=True))
    assert compare(made[0], wanted[1]).psnr_db < 20, "the figure must tell pictures apart"


def test_the_peak_is_the_workers_own() -> None:
    """A child starts with its parent's high-water mark in ru_maxrss; the manifest must not report that."""
    ballast = np.ones(100_000_000)
    code = "from md_export.engine.artifact import peak_resident_bytes as peak; print(peak())"
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ballast.nbytes == 800_000_000
    assert 5e7 < int(made.stdout) < 8e8


def test_one_component_alone(nano: Path, tmp_path: Path) -> None:
    recipe = load_recipe(builtin_recipe("onnx", "fp32")).narrowed(("vae_decoder",))
    manifest, result = export(recipe, nano, tmp_path / "out")
    assert [entry.component for entry in manifest.artifacts] == ["vae_decoder"]
    assert result.passed
    assert result.picture is None


def test_existing_output_is_refused_before_any_work(nano: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="exists"):
        export(load_recipe(builtin_recipe("onnx", "fp32")), nano, tmp_path)


def test_what_falls_short_is_kept_apart(nano: Path, tmp_path: Path) -> None:
    text = builtin_recipe("onnx", "fp32").read_text().replace("snr_db = 90.0", "snr_db = 300.0")
    (tmp_path / "strict.toml").write_text(text)
    recipe = load_recipe(tmp_path / "strict.toml").narrowed(("vae_decoder",))
    with pytest.raises(ParityError, match="vae_decoder: snr"):
        export(recipe, nano, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert read_manifest(tmp_path / "out.rejected").artifacts[0].component == "vae_decoder"
    assert sorted(item.name for item in tmp_path.iterdir()) == ["out.rejected", "strict.toml"]


def test_a_form_that_a_known_fault_concerns_is_refused(nano: Path, tmp_path: Path) -> None:
    """Attention at rank 3, which phones were reported to compute wrongly."""
    recipe = load_recipe(builtin_recipe("tflite", "fp32")).narrowed(("text_encoder",))
    before = dataclasses.replace(
        recipe, rewrites=tuple(name for name in recipe.rewrites if name != "rank_4_attention"), min_litert="2.1.6"
    )
    with pytest.raises(ConversionError) as caught:
        export(before, nano, tmp_path / "out")
    text = str(caught.value)
    assert text.startswith("tflite text_encoder: a known fault concerns LiteRT 2.1.6 (min_litert) or a later one: on ")
    assert "BATCH_MATMUL 4×77×32 of encoder.layers.0.self_attn (" in text
    assert "rewrite rank_4_attention" in text
    assert not (tmp_path / "out").exists()


def test_substitution_without_training_is_refused(nano: Path, tmp_path: Path) -> None:
    recipe = load_recipe(builtin_recipe("onnx", "fp32")).narrowed(("unet",))
    gelu = nano / "siblings" / "gelu"
    with pytest.raises(RewriteError, match="--allow-drift"):
        export(replace_rewrites(recipe, False), gelu, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_allowed_drift_is_measured_and_written(nano: Path, tmp_path: Path) -> None:
    recipe = load_recipe(builtin_recipe("onnx", "fp32")).narrowed(("unet",))
    manifest, result = export(replace_rewrites(recipe, True), nano / "siblings" / "gelu", tmp_path / "out")
    assert result.passed, "the artifact computes the rewritten model"
    (record,) = manifest.artifacts[0].rewrites
    assert record.fired > 0
    assert not record.exact
    assert manifest.drift is not None
    assert np.isfinite(manifest.drift.unet_snr_db)
    assert manifest.drift.unet_snr_db < 60


def replace_rewrites(recipe: Recipe, allow_drift: bool) -> Recipe:
    return dataclasses.replace(recipe, rewrites=("gelu_to_swish",), allow_drift=allow_drift)


def test_goldens_of_another_checkpoint_are_refused(nano: Path, other_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(GoldenError, match="another checkpoint"):
        export(load_recipe(builtin_recipe("onnx", "fp32")), other_checkpoint, tmp_path / "out", nano / "golden")
