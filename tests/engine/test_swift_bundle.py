"""What ``--layout swift`` writes beside the packages: tokenizer, constants, the script for the Mac."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from md_export.checkpoint import open_checkpoint
from md_export.engine.planning import plan
from md_export.engine.swift_bundle import schedule_of, write_bundle
from md_export.errors import CheckpointError
from md_export.models.sampling.schedule import ScheduleConfig
from md_export.models.tokenizers import tokenize
from md_export.spec.recipe_file import load_recipe
from md_export.spec.shipped_files import builtin_recipe
from mutations import edit_json

PROMPT = "a large red circle on the left, white background"


def test_the_files_that_swift_looks_for(swift: Path, nano: Path) -> None:
    assert (swift / "vocab.json").read_bytes() == (nano / "tokenizer" / "vocab.json").read_bytes()
    assert (swift / "merges.txt").read_bytes() == (nano / "tokenizer" / "merges.txt").read_bytes()
    schedule = json.loads((swift / "schedule.json").read_text())
    one_step = json.loads((swift / "manifest.json").read_text())["one_step"]
    assert {name: schedule[name] for name in one_step} == one_step
    assert schedule["latent_shape"] == [1, 8, 8, 8]
    assert (schedule["image_size"], schedule["text_length"]) == (64, 77)
    assert schedule["stock_scheduler"] is None, "the nano checkpoint predicts v"
    assert os.access(swift / "finish-on-mac.sh", os.X_OK)


def other_tokenizer(nano: Path, folder: Path) -> Path:
    copy = shutil.copytree(nano, folder, ignore=shutil.ignore_patterns("golden", "training", "siblings"))
    return Path(copy)


@pytest.mark.seen("`pad_token` of Stable Diffusion 2 with `--layout swift`", "refused before any work")
def test_another_padding_is_refused(nano: Path, tmp_path: Path) -> None:
    """Stable Diffusion 2's text encoder, for one, was trained with "!" there."""
    checkpoint = other_tokenizer(nano, tmp_path / "checkpoint")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        edit_json(checkpoint / "tokenizer" / name, lambda values: values.update({"pad_token": "!"}))
    with pytest.raises(CheckpointError, match="as Swift's tokenizer does"):
        write_bundle(open_checkpoint(checkpoint), tmp_path)
    write_bundle(open_checkpoint(nano), tmp_path)
    recipe = replace(load_recipe(builtin_recipe("coreml", "fp16")), layout="swift")
    with pytest.raises(CheckpointError, match="as Swift's tokenizer does"):
        plan([recipe], checkpoint, None)
    assert plan([recipe], nano, None).steps


def test_a_tokenizer_without_merges_is_refused(nano: Path, tmp_path: Path) -> None:
    """Neither in its own file nor in tokenizer.json."""
    checkpoint = other_tokenizer(nano, tmp_path / "checkpoint")
    (checkpoint / "tokenizer" / "tokenizer.json").write_text("{}")
    (checkpoint / "tokenizer" / "merges.txt").unlink()
    with pytest.raises(CheckpointError, match="has no table of byte-pair merges"):
        write_bundle(open_checkpoint(checkpoint), tmp_path)


def test_merges_end_as_swift_reads_them(nano: Path, tmp_path: Path) -> None:
    checkpoint = other_tokenizer(nano, tmp_path / "checkpoint")
    merges = checkpoint / "tokenizer" / "merges.txt"
    merges.write_bytes(merges.read_bytes().replace(b"\n", b"\r\n").rstrip())
    write_bundle(open_checkpoint(checkpoint), tmp_path)
    assert (tmp_path / "merges.txt").read_bytes() == (nano / "tokenizer" / "merges.txt").read_bytes()


def test_a_space_before_a_comma_changes_nothing_here(nano: Path) -> None:
    """docs/apple.md advises it, since Swift's tokenizer parts words at spaces only."""
    spaced = PROMPT.replace(",", " ,")
    assert np.array_equal(tokenize(nano / "tokenizer", PROMPT, 77), tokenize(nano / "tokenizer", spaced, 77))


def test_the_stock_scheduler_is_named_where_it_is_right(nano: Path) -> None:
    config = open_checkpoint(nano).config
    schedule = schedule_of(replace(config, schedule=ScheduleConfig(prediction_type="epsilon")))
    assert schedule.stock_scheduler == "dpmSolverMultistepScheduler"
    # What that scheduler computes from its own constants, in float32: (sample - output·sigma) / alpha at step 999.
    betas = np.linspace(np.float32(0.00085) ** 0.5, np.float32(0.012) ** 0.5, 1000, dtype=np.float32) ** 2
    alpha = np.sqrt(np.cumprod(1 - betas, dtype=np.float32)[999])
    assert schedule.timestep == 999
    assert schedule.a == pytest.approx(1 / alpha, rel=1e-4)
    assert schedule.b == pytest.approx(-np.sqrt(1 - alpha**2) / alpha, rel=1e-4)
    for other in (ScheduleConfig(prediction_type="v_prediction"), ScheduleConfig(beta_end=0.02)):
        assert schedule_of(replace(config, schedule=other)).stock_scheduler is None


XCRUN = """#!/bin/sh
if [ "$1" = --find ]; then exit "${NO_COMPILER:-0}"; fi
[ "$1 $2" = "coremlcompiler compile" ] && [ -d "$3" ] && mkdir "$4/$(basename "$3" .mlpackage).mlmodelc"
"""


@pytest.fixture
def finish(swift: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the script of a copy, elsewhere and with a stand-in for Xcode's compiler."""
    out = shutil.copytree(swift, tmp_path / "an export", ignore=shutil.ignore_patterns("golden", "weights"))
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "xcrun").write_text(XCRUN)
    (tools / "xcrun").chmod(0o755)

    def run(missing: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        if missing:
            (out / missing).rename(tmp_path / "aside")
        path = {"PATH": f"{tools}:{os.environ['PATH']}"}
        script = str(out / "finish-on-mac.sh")
        return subprocess.run([script], env={**os.environ, **path, **environment}, capture_output=True, text=True)

    return run


def test_the_script_gathers_what_swift_reads(
    finish: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    for _ in range(2):
        done = finish()
        assert done.returncode == 0, done.stderr
    names = sorted(item.name for item in (tmp_path / "an export" / "Resources").iterdir())
    compiled = ["TextEncoder.mlmodelc", "Unet.mlmodelc", "VAEDecoder.mlmodelc"]
    assert names == [*compiled, "merges.txt", "schedule.json", "vocab.json"]


@pytest.mark.parametrize("missing", ["Unet.mlpackage", "merges.txt", "schedule.json"])
def test_the_script_says_what_is_missing(
    finish: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path, missing: str
) -> None:
    done = finish(missing)
    assert done.returncode == 1
    assert missing in done.stderr
    assert not (tmp_path / "an export" / "Resources").exists()


def test_the_script_asks_for_xcode(finish: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = finish(NO_COMPILER="1")
    assert done.returncode == 1
    assert "install Xcode" in done.stderr
