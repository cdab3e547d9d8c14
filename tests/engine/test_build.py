"""The real road, thin: the nano decoder as ONNX, built, cached, and compared with what one export makes."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from engine.toy import Quiet
from md_export.checkpoint import open_checkpoint
from md_export.cli import cli
from md_export.engine.build_recipe import load_recipes
from md_export.engine.cache import Cache
from md_export.engine.export import build
from md_export.engine.request import BuildRequest
from md_export.errors import ConversionError, MachineError, MdExportError
from md_export.parity.judge import verify
from md_export.spec.manifest import check_exports, read_manifest
from md_export.spec.shipped_files import builtin_recipe
from md_export.system.files import sha256_of
from md_export.system.isolation import Limits, attempt, result_of
from support import Exported

TEXT = 'name = "x"\nrecipes = ["mine.toml"]\ncomponents = ["vae_decoder"]\n'
LARGE = 10**12


def request(folder: Path, checkpoint: Path, **changes: object) -> BuildRequest:
    """The decoder by a recipe of its own, in ``folder``."""
    text = builtin_recipe("onnx", "fp32").read_text()
    (folder / "mine.toml").write_text(text)
    (folder / "build.toml").write_text(TEXT)
    places = {"out": folder / "out", "cache": folder / "cache", "most_bytes": LARGE}
    return BuildRequest(load_recipes([folder / "build.toml"]), checkpoint, **(places | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, nano: Path) -> Path:
    folder = tmp_path_factory.mktemp("built")
    outcome = build(request(folder, nano), listener := Quiet())
    assert listener.failures == []
    assert [(one.name, one.status) for one in outcome.exports] == [("onnx-fp32", "built")]
    return folder


@pytest.mark.slow
def test_it_is_the_export_that_the_command_for_one_makes(built: Path, exported: Exported) -> None:
    out, other = built / "out" / "onnx-fp32", exported("onnx", "fp32")
    assert sha256_of(out / "vae_decoder.onnx") == sha256_of(other / "vae_decoder.onnx")
    assert sha256_of(out / "golden") == sha256_of(other / "golden")
    assert sha256_of(out / "tokenizer") == sha256_of(other / "tokenizer")
    mine, theirs = read_manifest(out), read_manifest(other)
    assert mine.entry_for("vae_decoder").parity == theirs.entry_for("vae_decoder").parity
    assert mine.files == theirs.files
    assert verify(out).passed
    (checked,) = check_exports(built / "out")
    assert (checked.differences, checked.unlisted) == ((), ())


@pytest.mark.slow
def test_another_place_gives_the_same_bytes(built: Path, nano: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(nano, tmp_path / "elsewhere", ignore=shutil.ignore_patterns("siblings", "training"))
    assert build(request(tmp_path, copy), Quiet()).failures == ()
    here, there = built / "out" / "onnx-fp32", tmp_path / "out" / "onnx-fp32"
    names = sorted(path.relative_to(here) for path in here.rglob("*") if path.is_file())
    different = [name for name in names if sha256_of(here / name) != sha256_of(there / name)]
    assert different in ([], [Path("manifest.json")]), "only seconds and memory may differ"
    keys = [sorted(path.name for path in (one / "cache" / "entries").iterdir()) for one in (built, tmp_path)]
    assert keys[0] == keys[1]


@pytest.mark.slow
def test_another_unet_finds_the_decoder_in_the_cache(built: Path, nano: Path, tmp_path: Path) -> None:
    """Golden cases and the proof are made anew, and the manifest is the new checkpoint's."""
    sibling = nano / "siblings" / "gelu"
    listener = Quiet()
    cache = Path(shutil.copytree(built / "cache", tmp_path / "cache"))
    assert build(request(tmp_path, sibling, cache=cache), listener).failures == ()
    assert [step.split(" ", 1)[1] for step in listener.ran] == ["golden cases by torch", "verify"]
    here, there = built / "out" / "onnx-fp32", tmp_path / "out" / "onnx-fp32"
    assert sha256_of(here / "vae_decoder.onnx") == sha256_of(there / "vae_decoder.onnx")
    assert read_manifest(there).checkpoint_sha256 == open_checkpoint(sibling).sha256()
    assert verify(there).passed


@pytest.mark.slow
def test_again_it_is_light(built: Path, nano: Path) -> None:
    code = (
        "import sys\nfrom md_export.cli import cli\n"
        f"cli.main(['build', {str(built / 'build.toml')!r}, '--checkpoint', {str(nano)!r}, '-o', "
        f"{str(built / 'out')!r}, '--cache', {str(built / 'cache')!r}], standalone_mode=False)\n"
        "print('LOADED', [name for name in ('torch', 'transformers', 'onnx') if name in sys.modules])"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "everything is up to date" in run.stdout
    assert "LOADED []" in run.stdout
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 2


@pytest.mark.slow
def test_a_threshold_that_is_missed_fails_alone_and_is_not_kept(built: Path, nano: Path) -> None:
    """Only the verification runs, the artifact being there; the export that was there stays."""
    before = sha256_of(built / "out" / "onnx-fp32")
    asked = request(built, nano)
    strict = built / "mine.toml"
    strict.write_text(strict.read_text().replace("snr_db = 90.0", "snr_db = 300.0"))
    recipes = load_recipes([built / "build.toml"])
    outcome = build(BuildRequest(recipes, nano, asked.out, asked.cache, most_bytes=LARGE), listener := Quiet())
    assert listener.ran == ["onnx-fp32: verify"]
    assert [one.status for one in outcome.exports] == ["failed"]
    assert "below the recipe's 300 dB" in outcome.failures[0].reason
    assert [one.entry.kind for one in Cache(asked.cache).list()].count("export") == 1, "what fails is not kept"
    assert sha256_of(built / "out" / "onnx-fp32") == before


def sleep(seconds: float) -> None:
    time.sleep(seconds)


def test_a_process_that_holds_too_much_is_stopped_and_says_so() -> None:
    ended = attempt(sleep, 60.0, Limits(most_bytes=20_000_000))
    assert ended.over_memory
    assert ended.peak_bytes > 20_000_000
    with pytest.raises(MachineError, match=r"unet: the process was stopped when it held .* above its limit of 0.02 GB"):
        result_of(ended, ConversionError, "unet")
    assert not attempt(sleep, 0.0, Limits(most_bytes=LARGE)).over_memory


def command(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(one) for one in arguments])


def test_the_commands_of_the_cache(built: Path) -> None:
    listed = command("cache", "list", "--cache", built / "cache")
    assert "onnx-fp32: vae_decoder" in listed.output
    copy = Path(shutil.copytree(built / "cache", built / "copy"))
    pruned = command("cache", "prune", "--keep", "1K", "--cache", copy)
    assert "entries removed" in pruned.output
    assert list(Cache(copy).list()) == []
    assert command("cache", "prune", "--cache", copy).exception is not None
    for wrong in ("0G", "8", "8X", "-1G", "1e3G", ""):
        assert command("cache", "prune", "--keep", wrong, "--cache", copy).exit_code == 2


def test_the_plan_alone_does_nothing(built: Path, nano: Path, tmp_path: Path) -> None:
    shown = command(
        "build", "--plan", built / "build.toml", "--checkpoint", nano, "--cache", built / "cache", "-o", tmp_path / "o"
    )
    assert shown.exit_code == 0, shown.output
    assert "more in the cache" in shown.stderr
    assert not (tmp_path / "o").exists()


def test_manifest_check_names_what_differs(built: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(built / "out", tmp_path / "out"))
    assert command("manifest", "check", out).exit_code == 0
    assert command("manifest", "check", out / "onnx-fp32").exit_code == 0
    (out / "onnx-fp32" / "note.txt").write_text("")
    assert "note.txt is not in the manifest" in command("manifest", "check", out).output
    with (out / "onnx-fp32" / "vae_decoder.onnx").open("r+b") as stream:
        stream.seek(1000)
        stream.write(b"?")
    (out / "onnx-fp32" / "golden" / "case-000.safetensors").unlink()
    os.truncate(out / "onnx-fp32" / "tokenizer" / "vocab.json", 10)
    result = command("manifest", "check", out)
    assert isinstance(result.exception, MdExportError)
    for text in ("vae_decoder.onnx was altered", "case-000.safetensors is missing", "tokenizer/vocab.json was altered"):
        assert text in str(result.exception)
    assert isinstance(command("manifest", "check", tmp_path).exception, MdExportError)
