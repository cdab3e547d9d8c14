"""``md-export lint`` as a user meets it, and a planted float16 overflow that export, verify and lint must name."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from safetensors.torch import load_file, save_file

from cli.test_cli import fails, md_export
from md_export.diagnose.lint import lint
from md_export.errors import ParityError, UsageError
from md_export.parity.judge import verify
from md_export.spec.manifest import read_manifest
from md_export.spec.recipe_file import load_recipe
from mutations import deepen_mask, rehash, weight_file
from support import Exported

UNET = "unet/diffusion_pytorch_model.safetensors"
ATTENTION = "up_blocks.1.attentions.0.transformer_blocks.0.attn2"
# The values that attention carries pass 65504, and its output projection divides them again.
PLANTED = 2.0**17


@pytest.fixture(scope="module")
def rejected(tmp_path_factory: pytest.TempPathFactory, nano: Path) -> Path:
    """A Core ML export of the nano UNet with a planted overflow, as the pipeline leaves what it refuses."""
    from md_export.engine.export import export
    from md_export.spec.shipped_files import builtin_recipe

    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "planted"
    with FileLock(f"{root}.lock"):
        if not root.exists():
            shutil.copytree(nano, root / "checkpoint", ignore=shutil.ignore_patterns("golden", "training"))
            plant(root / "checkpoint" / UNET)
            recipe = load_recipe(builtin_recipe("coreml", "fp16")).narrowed(("unet",))
            plan = dataclasses.replace(recipe.golden, prompts=recipe.golden.prompts[:1])
            with pytest.raises(ParityError, match=f"float16 overflow in module {ATTENTION}"):
                export(dataclasses.replace(recipe, golden=plan), root / "checkpoint", root / "out")
    return root / "out.rejected"


def plant(weights: Path) -> None:
    """Exact in float32, a power of two each way, so that the checkpoint computes what it did."""
    tensors = {name: value.float() for name, value in load_file(weights).items()}
    tensors[f"{ATTENTION}.to_v.weight"] *= PLANTED
    tensors[f"{ATTENTION}.to_out.0.weight"] /= PLANTED
    save_file(tensors, weights)


def test_verify_names_the_planted_overflow(rejected: Path) -> None:
    result = md_export("verify", rejected)
    fails(result, 3, "unet:", "float16 overflow", f"module {ATTENTION}", "magnitudes up to")


def test_lint_names_the_planted_overflow(rejected: Path) -> None:
    (report,) = lint(rejected)
    found = [item for item in report.hazards or () if "overflow" in item.rules]
    assert found[0].module.startswith(ATTENTION)
    assert all(item.module.startswith(ATTENTION) and item.largest > 65504 for item in found)


def test_an_overflow_that_softmax_masks(copy_of: Exported) -> None:
    """Every output stays what it was, and so does the picture; what is stored inside does not."""
    out = copy_of("coreml", "fp16")
    deepen_mask(weight_file(out, "text_encoder"))
    rehash(out)
    result = verify(out)
    assert result.failures
    assert all("text_encoder: float16 overflow in module encoder.layers." in line for line in result.failures)
    assert all("self_attn, add" in line for line in result.failures)
    assert result.picture is not None
    assert result.picture.faults == ()


def test_an_untouched_export_has_no_hazard(exported: Exported) -> None:
    out = exported("coreml", "fp16")
    assert verify(out).failures == ()
    reports = lint(out)
    assert [report.file for report in reports] == [entry.file for entry in read_manifest(out).artifacts]
    for report in reports:
        assert report.hazards
        assert not any("overflow" in item.rules for item in report.hazards)
        assert report.count("likely") > report.count("unlikely") > 0


def test_lint_prints_and_exits_0(exported: Exported, tmp_path: Path) -> None:
    package = exported("coreml", "fp16") / "vae_decoder.mlpackage"
    result = md_export("lint", package, "--os", "iOS18", "--json", tmp_path / "lint.json", fresh=True)
    assert result.returncode == 0, result.stderr
    for words in ("likely", "unlikely", "what to do", "decoder.conv_in", "https://", "only a device shows"):
        assert words in result.stdout
    assert "runs on" not in result.stdout
    (values,) = json.loads((tmp_path / "lint.json").read_text())
    assert values["system"] == "iOS18"
    assert values["hazards"] is None
    assert {op["verdict"] for op in values["ops"]} <= {"likely", "unknown", "unlikely"}


def test_inputs_bring_hazards_of_one_package(exported: Exported, tmp_path: Path) -> None:
    out = exported("coreml", "fp16")
    np.savez(tmp_path / "x.npz", input_ids=np.zeros((1, 77), np.int32))
    (report,) = lint(out / "text_encoder.mlpackage", inputs=tmp_path / "x.npz")
    assert report.hazards
    with pytest.raises(UsageError, match="golden cases"):
        lint(out, inputs=tmp_path / "x.npz")


def test_an_export_without_golden_cases(copy_of: Exported) -> None:
    out = copy_of("coreml", "fp16")
    shutil.rmtree(out / "golden")
    assert [report.hazards for report in lint(out)] == [None, None, None]


def test_the_rules_are_printed() -> None:
    result = md_export("lint", "--rules")
    assert result.returncode == 0, result.stderr
    assert "last-axis-32" in result.stdout
    assert "https://github.com/hollance/neural-engine" in result.stdout


def test_what_cannot_be_linted(tmp_path: Path, exported: Exported) -> None:
    fails(md_export("lint"), 2, "--rules")
    fails(md_export("lint", tmp_path / "none.mlpackage"), 1, "does not exist")
    (tmp_path / "empty.mlpackage").mkdir()
    fails(md_export("lint", tmp_path / "empty.mlpackage"), 1, "no .mlpackage")
    fails(md_export("lint", exported("onnx", "int8") / "unet.onnx"), 2, "lint reads .mlpackage")
    fails(md_export("lint", exported("coreml", "fp16") / "unet.mlpackage", "--os", "iOS16"), 2, "iOS17")
