"""The driver that the GPU engine runs on, and the commands that run it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cli.test_cli import fails, md_export
from md_export.cli import cli
from md_export.errors import MissingExtraError, UsageError
from md_export.parity.metrics import compare
from md_export.spec.manifest import read_manifest, write_manifest
from md_export.spec.tensors import write_npz
from md_export.targets.tflite.gpu.engine import MANIFEST, VARIABLES, execute_on_gpu, find_driver, load_driver
from md_export.targets.tflite.run import load
from planted import COMPONENT, LATENT

ARTIFACT = f"{COMPONENT}.tflite"
INPUTS = {"latent": np.random.default_rng(0).standard_normal(LATENT, dtype=np.float32)}


@pytest.fixture
def no_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which a driver would be looked for first; there is none anywhere."""
    from md_export.targets.tflite.gpu import engine as driver

    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(driver, "DEBIAN", tmp_path / "chromium")
    return driver.cache_folder()


def test_without_a_driver_it_says_what_to_install(no_driver: Path) -> None:
    with pytest.raises(MissingExtraError, match=r"make gpu-driver.*chromium-common.*VK_DRIVER_FILES"):
        find_driver()
    no_driver.mkdir(parents=True)
    (no_driver / MANIFEST).write_text("{}")
    assert find_driver().manifest == no_driver / MANIFEST


@pytest.mark.parametrize("variable", VARIABLES)
def test_the_vulkan_loaders_variables_come_first(
    no_driver: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    mine = no_driver.parent / "mine.json"
    monkeypatch.setenv(variable, f"{mine}:/other.json")
    with pytest.raises(MissingExtraError, match=rf"{variable} names .*mine\.json, which does not exist"):
        find_driver()
    mine.parent.mkdir(parents=True)
    mine.write_text("{}")
    assert (find_driver().manifest, find_driver().variable) == (mine, variable)


def test_a_loader_that_cannot_be_loaded(no_driver: Path) -> None:
    no_driver.mkdir(parents=True)
    (no_driver / MANIFEST).write_text("{}")
    (no_driver / "libvulkan.so.1").write_text("no library")
    with pytest.raises(MissingExtraError, match="install libvulkan1"):
        load_driver(find_driver())


def command(*arguments: object) -> None:
    cli.main([str(argument) for argument in arguments], standalone_mode=False)


def test_flags_of_run(tmp_path: Path) -> None:
    path, other = tmp_path / ARTIFACT, tmp_path / "x.onnx"
    for file in (path, other, tmp_path / "x.npz"):
        file.write_bytes(b"")
    rest = ("--inputs", tmp_path / "x.npz", "-o", tmp_path / "y.npz")
    with pytest.raises(UsageError, match=r"--gpu runs TFLite files \(in LiteRT's GPU engine\), not onnx"):
        command("run", other, *rest, "--gpu")
    with pytest.raises(UsageError, match="--limit needs --gpu"):
        command("run", path, *rest, "--limit", 5)


def test_flags_of_verify(tmp_path: Path, planted: Callable[[str], Path]) -> None:
    manifest = read_manifest(planted("resident"))
    recipe = dataclasses.replace(manifest.recipe, target="onnx", min_litert=None)
    write_manifest(dataclasses.replace(manifest, target="onnx", recipe=recipe), tmp_path)
    with pytest.raises(UsageError, match=r"--gpu runs TFLite files \(in LiteRT's GPU engine\), not onnx"):
        command("verify", tmp_path, "--gpu")
    with pytest.raises(UsageError, match="--limit needs --gpu"):
        command("verify", planted("resident"), "--limit", 1)


def test_a_missing_driver_is_told_through_the_worker(
    planted: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLES[0], "/none.json")
    with pytest.raises(MissingExtraError, match=r"VK_DRIVER_FILES names /none\.json, which does not exist"):
        execute_on_gpu(planted("resident") / ARTIFACT, [INPUTS], 60.0)


@pytest.mark.usefixtures("gpu_driver")
def test_run_gpu_writes_what_the_engine_computes(tmp_path: Path, planted: Callable[[str], Path]) -> None:
    path = planted("resident") / ARTIFACT
    write_npz(tmp_path / "x.npz", INPUTS)
    result = md_export("run", path, "--inputs", tmp_path / "x.npz", "-o", tmp_path / "y.npz", "--gpu")
    assert result.returncode == 0, result.stderr
    assert "on the GPU" in result.stderr
    (wanted,) = load(path).run(INPUTS).values()
    with np.load(tmp_path / "y.npz") as made:
        assert compare(made["image"], wanted).snr_db > 90


@pytest.mark.usefixtures("gpu_driver")
def test_verify_gpu_exits_3_and_names_component_op_and_module(tmp_path: Path, planted: Callable[[str], Path]) -> None:
    result = md_export("verify", planted("broadcast"), "--gpu", "--json", tmp_path / "found.json")
    fails(result, 3, "vae_decoder:", "BROADCAST_TO 1×6×77 of middle", "Operation is not supported")
    assert "staged_group_norm" in result.stdout
    assert "NOT all" in result.stdout
    assert "necessary, not sufficient" in " ".join(result.stdout.split())
    (component,) = json.loads((tmp_path / "found.json").read_text())["components"]
    assert component["engine"]["findings"][0]["module"] == "middle"
    assert (component["engine"]["resident"], component["engine"]["correct"]) == (False, True)
    passed = md_export("verify", planted("resident"), "--gpu")
    assert passed.returncode == 0, passed.stderr
