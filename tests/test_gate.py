"""The gate itself: broken exports must fail, and the failure must name the component."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from md_export.artifact import ArtifactEntry, read_manifest, write_manifest
from md_export.errors import ArtifactError, GoldenError, RecipeError
from md_export.parity.verify import verify
from md_export.recipe import Tolerance
from md_export.tensors import TensorSpec
from mutations import flip_block, put_nan, rehash, weight_file
from support import ONE_EACH, Exported


@pytest.mark.parametrize(("target", "precision"), ONE_EACH)
def test_untouched_export_passes(exported: Exported, target: str, precision: str) -> None:
    result = verify(exported(target, precision))
    assert result.failures == ()
    assert result.picture is not None


@pytest.mark.parametrize(("target", "precision"), ONE_EACH)
@pytest.mark.parametrize("component", ["unet", "vae_decoder"])
def test_one_flipped_weight_block(copy_of: Exported, target: str, precision: str, component: str) -> None:
    out = copy_of(target, precision)
    flip_block(weight_file(out, component))
    failures = verify(out).failures
    assert any(line.startswith(f"{component}:") and "altered" in line for line in failures)
    assert all(line.startswith((component, "picture")) for line in failures)


@pytest.mark.parametrize(("target", "precision"), ONE_EACH)
def test_wrong_weights_under_a_fresh_manifest(copy_of: Exported, target: str, precision: str) -> None:
    """With the hashes made to agree, only the numbers can tell."""
    out = copy_of(target, precision)
    path = weight_file(out, "unet")
    flip_block(path, size=path.stat().st_size // 3)
    rehash(out)
    failures = verify(out).failures
    assert any(line.startswith("unet:") for line in failures)


@pytest.mark.parametrize(("target", "precision"), ONE_EACH)
def test_truncated_file(copy_of: Exported, target: str, precision: str) -> None:
    out = copy_of(target, precision)
    path = weight_file(out, "text_encoder")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    rehash(out)
    failures = verify(out).failures
    assert any(line.startswith("text_encoder:") for line in failures)


@pytest.mark.parametrize(("target", "precision"), ONE_EACH)
def test_swapped_artifacts(copy_of: Exported, target: str, precision: str) -> None:
    out = copy_of(target, precision)
    entries = {entry.component: entry for entry in read_manifest(out).artifacts}
    text, decoder = out / entries["text_encoder"].file, out / entries["vae_decoder"].file
    text.rename(out / "aside")
    decoder.rename(text)
    (out / "aside").rename(decoder)
    rehash(out)
    failures = verify(out).failures
    assert any(line.startswith("text_encoder:") for line in failures)
    assert any(line.startswith("vae_decoder:") for line in failures)
    assert any(line.startswith("picture:") for line in failures)


def change_entry(out: Path, component: str, **changes: object) -> None:
    manifest = read_manifest(out)
    entries: list[ArtifactEntry] = [
        dataclasses.replace(entry, **changes) if entry.component == component else entry  # type: ignore[arg-type]
        for entry in manifest.artifacts
    ]
    write_manifest(dataclasses.replace(manifest, artifacts=tuple(entries)), out)


def test_an_int8_that_is_float_inside(copy_of: Exported, exported: Exported) -> None:
    out = copy_of("onnx", "int8")
    shutil.copyfile(exported("onnx", "fp32") / "unet.onnx", out / "unet.onnx")
    rehash(out)
    failures = verify(out).failures
    assert any(line.startswith("unet:") and "int8 was requested" in line for line in failures)


def test_thresholds_of_the_recipe_decide(copy_of: Exported) -> None:
    out = copy_of("onnx", "int8")
    manifest = read_manifest(out)
    strict = {**manifest.recipe.tolerances, "unet": Tolerance(snr_db=20, cosine=0.9999999, max_abs=1e-9, psnr_db=99)}
    recipe = dataclasses.replace(manifest.recipe, tolerances=strict)
    write_manifest(dataclasses.replace(manifest, recipe=recipe), out)
    (failures,) = [item.faults for item in verify(out).components if item.component == "unet"]
    assert [line.split()[0] for line in failures] == ["psnr", "cosine", "max"]


def test_stale_golden_cases(copy_of: Exported) -> None:
    out = copy_of("onnx", "int8")
    index = out / "golden" / "index.json"
    values = json.loads(index.read_text())
    values["cases"].pop()
    index.write_text(json.dumps(values))
    with pytest.raises(GoldenError, match="altered since the export"):
        verify(out)


def test_artifacts_of_another_checkpoint(copy_of: Exported) -> None:
    out = copy_of("onnx", "int8")
    manifest = read_manifest(out)
    write_manifest(dataclasses.replace(manifest, checkpoint_sha256="0" * 64), out)
    with pytest.raises(GoldenError, match="another checkpoint"):
        verify(out)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"file": "../unet.onnx"}, "not a plain name"),
        ({"file": "none.onnx"}, "missing"),
    ],
)
def test_edited_manifest(copy_of: Exported, change: dict[str, object], message: str) -> None:
    out = copy_of("onnx", "int8")
    change_entry(out, "unet", **change)
    with pytest.raises(ArtifactError, match=message):
        verify(out)


@pytest.mark.parametrize(
    "change",
    [{"outputs": ()}, {"outputs": (TensorSpec("x", (1,), "float32"),)}, {"inputs": (TensorSpec("x", (1,), "int32"),)}],
)
def test_edited_names_are_a_fault_of_the_component(copy_of: Exported, change: dict[str, object]) -> None:
    out = copy_of("onnx", "int8")
    change_entry(out, "unet", **change)
    assert any(line.startswith("unet: the manifest's inputs and outputs") for line in verify(out).failures)


def test_a_component_struck_from_the_manifest(copy_of: Exported) -> None:
    """Without it the picture would go unjudged."""
    out = copy_of("onnx", "int8")
    manifest = read_manifest(out)
    write_manifest(dataclasses.replace(manifest, artifacts=manifest.artifacts[:2]), out)
    with pytest.raises(ArtifactError, match="its recipe has text_encoder, unet, vae_decoder"):
        verify(out)


def test_thresholds_struck_from_the_manifest(copy_of: Exported) -> None:
    out = copy_of("onnx", "int8")
    path = out / "manifest.json"
    values = json.loads(path.read_text())
    del values["recipe"]["tolerances"]["unet"]
    path.write_text(json.dumps(values))
    with pytest.raises(RecipeError, match=r"\[tolerance.unet\] is missing"):
        verify(out)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(max_size=400) | st.text(max_size=200).map(str.encode))
def test_hostile_manifest_gives_our_own_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(ArtifactError):
        read_manifest(tmp_path)


@pytest.mark.parametrize(("target", "precision"), ONE_EACH)
def test_one_nan_in_a_weight(copy_of: Exported, target: str, precision: str) -> None:
    """With the hashes made to agree; integer arithmetic can hide a NaN from every output, so the file is read too."""
    out = copy_of(target, precision)
    put_nan(weight_file(out, "unet"))
    rehash(out)
    failures = verify(out).failures
    assert any(line.startswith("unet:") and "NaN" in line for line in failures)
