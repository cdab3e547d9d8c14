"""``md-export compare`` as a user meets it, on real exports."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from cli.test_cli import fails, md_export
from md_export.diagnose.compare import compare_exports
from md_export.errors import ArtifactError, RecipeError, UsageError
from md_export.spec.manifest import read_manifest, write_manifest
from mutations import edit_json, flip_block, weight_file
from support import Exported


@pytest.mark.slow
def test_an_export_against_itself(exported: Exported, tmp_path: Path) -> None:
    out, file = exported("onnx", "int8"), tmp_path / "c.json"
    result = md_export("compare", out, out, "--json", file)
    assert result.returncode == 0, result.stderr
    assert "the same bit for bit" in result.stdout
    found = json.loads(file.read_text())
    assert found["changes"]
    assert all(item["within"] and item["worse_by"] == 0 for item in found["changes"])
    assert found["recounts"] == []


@pytest.mark.slow
def test_int8_after_fp32_is_worse_by_the_budget_and_says_what(exported: Exported, tmp_path: Path) -> None:
    markdown, junit = tmp_path / "m.md", tmp_path / "j.xml"
    forms = ("--markdown", markdown, "--junit", junit, "--annotate", "recipes/mine.toml")
    result = md_export("compare", exported("onnx", "fp32"), exported("onnx", "int8"), *forms)
    fails(result, 3, "unet: SNR dB", "(snr_db_loss)", "unet: ops", "picture: PSNR dB")
    assert "bytes" not in result.stderr.strip().splitlines()[-1], "int8 is smaller"
    assert "::error file=recipes/mine.toml,title=md-export compare::unet: SNR dB" in result.stdout
    assert "past the budget" in markdown.read_text()
    assert "<failure" in junit.read_text()


def test_two_targets_are_a_usage_error(exported: Exported) -> None:
    out = exported("onnx", "int8")
    fails(md_export("compare", exported("coreml", "fp16"), out), 2, "coreml", "onnx", "one target")
    fails(md_export("compare", out, out, "--gpu"), 2, "--gpu")


@pytest.mark.slow
def test_no_budget_and_no_baseline_are_errors(copy_of: Exported, exported: Exported) -> None:
    good, out = exported("onnx", "int8"), copy_of("onnx", "int8")
    edit_json(out / "manifest.json", lambda values: values["recipe"].update(regression=None))
    with pytest.raises(RecipeError, match=r"\[regression\]"):
        compare_exports(good, out)
    flip_block(weight_file(out, "unet"))
    with pytest.raises(ArtifactError, match=r"no baseline: unet: .* altered"):
        compare_exports(out, good)


def test_other_components_are_a_usage_error(copy_of: Exported, exported: Exported) -> None:
    out = copy_of("onnx", "int8")
    manifest = read_manifest(out)
    recipe = manifest.recipe.narrowed(("unet",))
    write_manifest(dataclasses.replace(manifest, recipe=recipe, artifacts=manifest.artifacts[1:2]), out)
    with pytest.raises(UsageError, match="differ in components"):
        compare_exports(exported("onnx", "int8"), out)


@pytest.mark.slow
def test_figures_are_measured_not_read_from_the_manifest(copy_of: Exported, exported: Exported) -> None:
    """A manifest that praises a worse artifact is not believed."""
    good, out = exported("onnx", "fp32"), copy_of("onnx", "fp32")
    shutil.copyfile(exported("onnx", "int8") / "unet.onnx", out / "unet.onnx")
    changes = {(item.component, item.figure): item for item in compare_exports(good, out).changes}
    assert not changes["unet", "SNR dB"].within
    assert not changes["unet", "ops"].within
    assert changes["unet", "bytes"].new == (out / "unet.onnx").stat().st_size
