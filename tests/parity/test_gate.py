"""The gate itself: what the self-test's table of mutations does not say. A failure must name the component."""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path

import pytest

from md_export.errors import ArtifactError
from md_export.parity.judge import judge, verify
from md_export.parity.metrics import Check
from md_export.spec.artifact import ArtifactEntry
from md_export.spec.manifest import read_manifest, write_manifest
from md_export.spec.recipe import Tolerance
from md_export.spec.tensors import TensorSpec
from md_export.system.files import sha256_of
from mutations import edit_json, flip_block, weight_file
from support import ONE_EACH, Exported


@pytest.mark.parametrize(("target", "precision"), ONE_EACH)
def test_untouched_export_passes(exported: Exported, target: str, precision: str) -> None:
    result = verify(exported(target, precision))
    assert result.failures == ()
    assert result.picture is not None


def test_a_failure_names_its_component_and_nobody_elses(copy_of: Exported) -> None:
    out = copy_of("onnx", "int8")
    flip_block(weight_file(out, "unet"))
    result = verify(out)
    assert any(line.startswith("unet:") and "altered" in line for line in result.failures)
    assert all(line.startswith(("unet", "picture")) for line in result.failures)
    assert Check.BYTES in {fault.check for fault in result.faults}


def change_entry(out: Path, component: str, **changes: object) -> None:
    manifest = read_manifest(out)
    entries: list[ArtifactEntry] = [
        dataclasses.replace(entry, **changes) if entry.component == component else entry  # type: ignore[arg-type]
        for entry in manifest.artifacts
    ]
    write_manifest(dataclasses.replace(manifest, artifacts=tuple(entries)), out)


def test_thresholds_of_the_recipe_decide(copy_of: Exported) -> None:
    out = copy_of("onnx", "int8")
    manifest = read_manifest(out)
    strict = {**manifest.recipe.tolerances, "unet": Tolerance(snr_db=20, cosine=0.9999999, max_abs=1e-9, psnr_db=99)}
    recipe = dataclasses.replace(manifest.recipe, tolerances=strict)
    write_manifest(dataclasses.replace(manifest, recipe=recipe), out)
    (failures,) = [item.faults for item in verify(out).components if item.component == "unet"]
    assert [line.split()[0] for line in failures] == ["psnr", "cosine", "max"]


@pytest.mark.parametrize("name", ["none.onnx", "x" * 300 + ".onnx", "a\0b.onnx", ""])
def test_an_artifact_that_is_not_there(copy_of: Exported, name: str) -> None:
    out = copy_of("onnx", "int8")
    change_entry(out, "unet", file=name)
    with pytest.raises(ArtifactError, match=r"missing|not a plain name|holds a control character"):
        verify(out)


def test_a_target_that_nobody_knows(copy_of: Exported) -> None:
    out = copy_of("onnx", "int8")
    edit_json(
        out / "manifest.json", lambda manifest: (manifest.update(target="x"), manifest["recipe"].update(target="x"))
    )
    with pytest.raises(ArtifactError, match="unknown target 'x'; known: coreml, tflite, onnx"):
        judge(out)


@pytest.mark.parametrize(
    "change",
    [{"outputs": ()}, {"outputs": (TensorSpec("x", (1,), "float32"),)}, {"inputs": (TensorSpec("x", (1,), "int32"),)}],
)
def test_edited_names_are_a_fault_of_the_component(copy_of: Exported, change: dict[str, object]) -> None:
    out = copy_of("onnx", "int8")
    change_entry(out, "unet", **change)
    assert any(line.startswith("unet: the manifest's inputs and outputs") for line in verify(out).failures)


def test_a_tokenizer_with_two_words_exchanged_is_named(copy_of: Exported) -> None:
    """ "red" would give a blue picture: no artifact depends on it, and the manifest's hashes can be corrected."""
    out = copy_of("onnx", "int8")
    vocabulary = out / "tokenizer" / "vocab.json"
    assert verify(out).failures == ()
    edit_json(vocabulary, lambda words: words.update({"red</w>": words["blue</w>"], "blue</w>": words["red</w>"]}))
    edit_json(
        out / "manifest.json",
        lambda manifest: manifest["files"].update({"tokenizer/vocab.json": sha256_of(vocabulary)}),
    )
    (line,) = verify(out).failures
    assert re.search(r"tokenizer/ gives other ids for the golden prompt 'a .*: 1 of 77 differ, the first at", line)
    shutil.rmtree(out / "tokenizer")
    lines = verify(out).failures
    assert any("holds no CLIP tokenizer" in line for line in lines)
    assert any("tokenizer/vocab.json is missing" in line for line in lines)
