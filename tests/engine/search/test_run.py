"""A whole search of the nano checkpoint's decoder: stopped and started again, and what it writes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from md_export.engine.search.results import TRADE_OFF
from md_export.errors import ArtifactError
from md_export.parity.judge import verify
from md_export.spec.manifest import read_manifest
from md_export.spec.recipe_file import load_recipe
from md_export.spec.shipped_files import builtin_recipe

pytestmark = pytest.mark.slow
LEAST_DB = 40.0
PROMPTS = "a large red circle on the left, white background\na small blue square on the right, black background\n"


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("search")
    recipe = (
        builtin_recipe("onnx", "int4")
        .read_text()
        .replace('target = "onnx"', 'target = "onnx"\ncomponents = ["vae_decoder"]')
    )
    for table in ("scheme.unet", "scheme.text_encoder", "tolerance.unet", "tolerance.text_encoder"):
        recipe = without_table(recipe, table)
    (folder / "decoder.toml").write_text(recipe)
    (folder / "prompts.txt").write_text(PROMPTS)
    options = ["--target", "onnx", "--budget", f"snr={LEAST_DB:g}", "--rounding", "gptq", "--jobs", "1"]
    files = ["--recipe", str(folder / "decoder.toml"), "--prompts", str(folder / "prompts.txt")]
    return [sys.executable, "-c", "from md_export.cli import main; main()", "search", *options, *files]


def without_table(text: str, name: str) -> str:
    blocks = text.split("\n\n")
    return "\n\n".join(block for block in blocks if f"[{name}" not in block and f"[[{name}" not in block)


@pytest.fixture(scope="module")
def whole(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "found"
    run = subprocess.run([*words, "-o", str(out)], check=True, capture_output=True, text=True)
    (out.with_name("told.txt")).write_text(run.stderr)
    return out


def test_what_is_found_is_not_built_again(whole: Path) -> None:
    """Its thresholds are other ones than those of the try: it is verified by them, and nothing else is done."""
    told = whole.with_name("told.txt").read_text().splitlines()
    plans = [line for line in told if line.startswith("to build: ")]
    tries = [line for line in told if line.startswith("build ")]
    assert len(plans) == 1 + len(tries) + 1, "the cases to measure on, each try, and what was found"
    assert plans[-1] == "to build: verify; from the cache: golden cases, vae_decoder"
    assert all("from the cache: golden cases" in line for line in plans[1:])


def test_what_is_written_keeps_to_the_budget(whole: Path) -> None:
    recipe = load_recipe(whole / "recipe.toml")
    found = TRADE_OFF.validate_json((whole / "curve.json").read_bytes())
    assert recipe.tolerances["vae_decoder"].snr_db == LEAST_DB
    assert found.built["chosen"].snr_db["vae_decoder"] >= LEAST_DB
    assert read_manifest(whole / "artifacts").recipe == recipe
    assert verify(whole / "artifacts").passed
    assert "<svg" in (whole / "curve.svg").read_text()
    # Neither all small nor all large: the budget was chosen to lie between.
    assert len(recipe.schemes["vae_decoder"].all_weights) > 1
    assert found.curve[0].bytes < found.chosen.bytes < found.curve[-1].bytes


def test_a_search_that_was_killed_goes_on_and_finds_the_same(words: list[str], whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "found"
    journal = out.with_name("found.journal")
    started = subprocess.Popen([*words, "-o", str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while started.poll() is None and lines_of(journal) < 6:
        time.sleep(0.05)
    started.send_signal(signal.SIGKILL)
    started.wait()
    kept = lines_of(journal) - 1
    assert not out.exists()
    ended = subprocess.run([*words, "-o", str(out)], check=True, capture_output=True, text=True)
    assert f"{kept} of " in ended.stderr
    assert (out / "recipe.toml").read_bytes() == (whole / "recipe.toml").read_bytes()
    assert (out / "curve.json").read_bytes() == (whole / "curve.json").read_bytes()


def lines_of(journal: Path) -> int:
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def test_measurements_of_another_search_are_refused(words: list[str], whole: Path, tmp_path: Path) -> None:
    journal = whole.with_name("found.journal")
    other = [*words, "--rounding", "nearest", "--journal", str(journal), "-o", str(tmp_path / "found")]
    ended = subprocess.run(other, check=False, capture_output=True, text=True)
    assert ended.returncode == ArtifactError.exit_code
    assert "is of another search: rounding" in ended.stderr
    assert json.loads(journal.read_text().splitlines()[0])["key"]["rounding"] == "gptq"


def test_a_budget_out_of_reach_leaves_nothing(words: list[str], whole: Path, tmp_path: Path) -> None:
    journal = whole.with_name("found.journal")
    ended = subprocess.run(
        [*words, "--budget", "bytes=20kB", "--journal", str(journal), "-o", str(tmp_path / "found")],
        check=False,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 2
    assert "the smallest form of every module makes" in ended.stderr
    assert not (tmp_path / "found").exists()
