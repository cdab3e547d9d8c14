"""The same file in other runtimes: an op that a set of kernels computes wrongly is named with its module."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli.test_cli import fails, md_export
from md_export.cli import artifacts as cli_runtimes
from md_export.cli import cli
from md_export.errors import MissingExtraError, UsageError
from md_export.parity.golden.folder import read_golden
from md_export.parity.metrics import EXACT_DB
from md_export.parity.runtimes import KernelDetails, agreement, disagreements, verify_in_runtimes
from md_export.parity.verdict import Verdict, failures_of
from md_export.spec.artifact import GOLDEN_FOLDER
from md_export.spec.manifest import read_manifest, write_manifest
from md_export.spec.recipe import Tolerance
from md_export.spec.tensors import Arrays, write_npz
from md_export.targets.tflite import run as runtimes
from md_export.targets.tflite.observe import observed
from md_export.targets.tflite.run import load
from planted import COMPONENT
from support import Exported

ARTIFACT = f"{COMPONENT}.tflite"
LIBRARIES = [
    "litert",
    pytest.param(
        "tensorflow",
        marks=pytest.mark.skipif(
            importlib.util.find_spec("tensorflow") is None, reason="needs tensorflow: pip install '.[tensorflow]'"
        ),
    ),
]
Planted = Callable[[str], Path]
Verdicts = tuple[Verdict[KernelDetails], ...]


@pytest.fixture(scope="session")
def verdict(planted: Planted) -> Callable[[str, str], Verdicts]:
    """``verdict("cornered", "litert")`` → what ``verify --runtime`` found, computed once."""
    found: dict[tuple[str, str], Verdicts] = {}

    def get(plant: str, library: str) -> Verdicts:
        key = (plant, library)
        if key not in found:
            found[key] = verify_in_runtimes(planted(plant), None, library)
        return found[key]

    return get


def inputs_of(out: Path) -> Arrays:
    (case,) = read_golden(out / GOLDEN_FOLDER).cases
    return case.inputs(COMPONENT)


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_graph_that_is_right_everywhere_passes(verdict: Callable[[str, str], Verdicts], library: str) -> None:
    result = verdict("resident", library)
    assert failures_of(result) == ()
    assert [verdict.runtime for verdict in result] == [library, f"{library}-builtin", f"{library}-reference"]
    for item in (item for verdict in result for item in verdict.components):
        assert item.engine.findings == ()
        assert item.parity is not None
        assert item.parity.snr_db >= 90
        assert item.engine.agreement_db is not None
        assert item.engine.agreement_db >= 90


@pytest.mark.parametrize("library", LIBRARIES)
def test_an_op_that_a_set_of_kernels_computes_wrongly_is_named(
    verdict: Callable[[str, str], Verdicts], library: str
) -> None:
    right, wrong, reference = (item for found in verdict("cornered", library) for item in found.components)
    assert (right.faults, reference.faults) == ((), ())
    (finding,) = wrong.engine.findings
    assert (finding.operator, finding.module, finding.shape) == ("CONV_2D", "middle.conv", (1, 2, 2, 12))
    assert finding.snr_db < 20
    # The first fault is what the output looks like: it holds what was in memory, so it may not even be finite.
    assert len(wrong.faults) == 2
    assert "to blame first: CONV_2D 1×2×2×12 of middle.conv" in wrong.faults[-1]


def test_a_difference_that_builds_up_names_the_op_with_most_of_it(planted: Planted, tmp_path: Path) -> None:
    out = planted("masked")
    (most,) = disagreements(out / ARTIFACT, inputs_of(out), "litert-reference", -EXACT_DB)
    whole = verify_in_runtimes(out, None, "litert")[2].components[0].engine.agreement_db
    assert whole is not None
    assert whole < most.snr_db
    manifest = read_manifest(out)
    between = Tolerance((whole + most.snr_db) / 2)
    recipe = dataclasses.replace(manifest.recipe, tolerances={COMPONENT: between})
    for name in (ARTIFACT, GOLDEN_FOLDER):
        (tmp_path / name).symlink_to(out / name)
    write_manifest(dataclasses.replace(manifest, recipe=recipe), tmp_path)
    (strict,) = verify_in_runtimes(tmp_path, None, "litert")[2].components
    assert "no single op does, the difference accumulates; the largest part at" in strict.faults[-1]
    assert strict.engine.findings == (most,)


def test_int8_values_are_compared_without_their_zero_point(
    subject: Callable[..., Any], artifact: Callable[..., Path]
) -> None:
    path = artifact("text_encoder", "int8_static")
    assert any(tensor.zero_point for tensor in observed(path))
    (most,) = disagreements(path, subject("text_encoder").held_out, "litert-reference", 20.0)
    assert 20 <= most.snr_db < EXACT_DB


def test_agreement_of_values_that_are_not_finite() -> None:
    one, nan = np.ones(2, np.float32), np.array([1, np.nan], np.float32)
    assert agreement(nan, nan) == EXACT_DB
    assert agreement(nan, one) == agreement(one, nan) == agreement(one, one[:1]) == -EXACT_DB
    assert agreement(np.array([1, 1.1], np.float32), one) == pytest.approx(23.0, abs=0.1)


def test_a_file_that_was_altered_or_does_not_load(planted: Planted, tmp_path: Path) -> None:
    out = planted("resident")
    for name in ("manifest.json", GOLDEN_FOLDER):
        (tmp_path / name).symlink_to(out / name)
    (tmp_path / ARTIFACT).write_bytes((out / ARTIFACT).read_bytes()[:1000])
    for verdict in verify_in_runtimes(tmp_path, None, "litert"):
        (only,) = verdict.components
        altered, broken = only.faults
        assert "it was altered" in altered
        assert "cannot be loaded by litert" in broken


def test_a_missing_library_says_what_to_install(planted: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    for use in (
        lambda: verify_in_runtimes(planted("resident"), None, "tensorflow"),
        lambda: load(planted("resident") / ARTIFACT, "tensorflow-reference"),
    ):
        with pytest.raises(MissingExtraError, match=r"pip install 'md-export\[tensorflow\]'"):
            use()
    assert load(planted("resident") / ARTIFACT, "litert-reference").outputs


def test_the_commands_names_are_the_tables() -> None:
    assert cli_runtimes.RUNTIMES["tflite"] == tuple(runtimes.RUNTIMES)
    assert cli_runtimes.LIBRARIES == runtimes.LIBRARIES
    with pytest.raises(UsageError, match=r"runs in litert, .*tensorflow-reference, not in 'mil'"):
        load(Path("x.tflite"), "mil")


def test_flags_that_contradict_each_other(planted: Planted, tmp_path: Path) -> None:
    def command(*arguments: object) -> None:
        cli.main([str(argument) for argument in arguments], standalone_mode=False)

    with pytest.raises(UsageError, match="leave out --runtime"):
        command("verify", planted("resident"), "--gpu", "--runtime", "litert")
    manifest = read_manifest(planted("resident"))
    recipe = dataclasses.replace(manifest.recipe, target="onnx", min_litert=None)
    write_manifest(dataclasses.replace(manifest, target="onnx", recipe=recipe), tmp_path)
    with pytest.raises(UsageError, match="--runtime tensorflow does not run onnx; leave it out"):
        command("verify", tmp_path, "--runtime", "tensorflow")
    path = planted("resident") / ARTIFACT
    (tmp_path / "x.npz").touch()
    with pytest.raises(UsageError, match="--runtime mil does not run tflite; choose litert, litert-builtin"):
        command("run", path, "--inputs", tmp_path / "x.npz", "-o", tmp_path / "y.npz", "--runtime", "mil")


def test_run_takes_the_kernels_that_are_named(planted: Planted, tmp_path: Path) -> None:
    path, inputs = planted("cornered") / ARTIFACT, inputs_of(planted("cornered"))
    write_npz(tmp_path / "x.npz", inputs)
    made = {}
    for runtime in ("litert", "litert-builtin"):
        result = md_export("run", path, "--inputs", tmp_path / "x.npz", "-o", tmp_path / "y.npz", "--runtime", runtime)
        assert result.returncode == 0, result.stderr
        with np.load(tmp_path / "y.npz") as outputs:
            made[runtime] = outputs["image"]
    assert np.array_equal(made["litert"], load(path).run(inputs)["image"])
    assert agreement(made["litert-builtin"], made["litert"]) < 40


def test_verify_runtime_exits_3_and_names_component_runtime_op_and_module(planted: Planted, tmp_path: Path) -> None:
    result = md_export("verify", planted("cornered"), "--runtime", "litert", "--json", tmp_path / "found.json")
    fails(result, 3, "vae_decoder in litert-builtin:", "CONV_2D 1×2×2×12 of middle.conv")
    assert "optimized, without XNNPACK" in result.stdout
    _, wrong, _ = json.loads((tmp_path / "found.json").read_text())
    assert wrong["components"][0]["engine"]["findings"][0]["module"] == "middle.conv"


@pytest.mark.slow
def test_the_nano_export_is_right_in_all_kernels(exported: Exported) -> None:
    result = verify_in_runtimes(exported("tflite", "int8"), None, "litert")
    assert failures_of(result) == ()
    assert sum(len(verdict.components) for verdict in result) == 9
