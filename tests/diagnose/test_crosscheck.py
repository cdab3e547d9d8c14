"""Two runtimes beside each other: agreement is seen, and so is a weight that only one of them has wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cli.test_cli import fails, md_export
from md_export.diagnose.crosscheck.artifacts import Crosscheck, ModuleRow, Pair, crosscheck_pair
from md_export.diagnose.crosscheck.operations import OPERATIONS, judged, rows
from md_export.report.diagnoses import crosscheck_tables, operation_table, verdict
from md_export.spec.manifest import read_manifest
from md_export.targets import TARGETS
from mutations import rehash
from support import Exported, installed

FC2 = "encoder.layers.1.mlp.fc2"


def artifacts(*folders: Path) -> tuple[Path, ...]:
    return tuple(folder / read_manifest(folder).entry_for("text_encoder").file for folder in folders)


def test_right_artifacts_agree_and_a_reversed_weight_is_named(
    exported: Exported, copy_of: Exported, nano: Path
) -> None:
    one, other = artifacts(exported("onnx", "int8"), exported("coreai", "int8"))
    found = crosscheck_pair(Pair(one, other, nano))
    assert found.files == ("text_encoder.onnx", "text_encoder.aimodel")
    assert len(found.cases) == 16
    assert all(row.between_db > 20 for row in found.cases)
    assert len(found.modules) > 30
    # onnxruntime computes in int8 what Core AI computes in float32: where they differ, the former is worse.
    assert all(row.apart_db < 0 for row in found.disagreements)
    folder = copy_of("coreai", "int8")
    (damaged,) = artifacts(folder)
    with TARGETS["coreai"].open().edit(damaged) as constants:
        alike = [item for item in constants if item.values.dtype == np.int8 and item.values.shape == (128, 384)]
        alike[1].values[...] = alike[1].values[::-1].copy()
    rehash(folder)
    wrong = crosscheck_pair(Pair(one, damaged, nano))
    assert [row.path for row in wrong.disagreements if row.apart_db > 0] == [FC2]
    assert f"{FC2} (Linear) is " in verdict(wrong)
    assert "worse in text_encoder.aimodel than in text_encoder.onnx" in verdict(wrong)
    assert len(crosscheck_tables(wrong)) == 3


def test_operations_that_round_alike_are_equal_and_one_that_does_not_is_seen() -> None:
    installed("coreai")
    found = {row.name: row for row in rows(("silu", "linear"))}
    assert {row.fault for row in found.values()} == {""}
    silu, linear = found["silu"], found["linear"]
    assert silu.equal == 1
    assert silu.steps is not None
    assert max(silu.steps) <= 0.51
    # Apple's CPU runtime adds products up in float16, ours in float32.
    assert linear.equal is not None
    assert linear.equal < 0.9
    assert linear.snr_db is not None
    assert linear.snr_db[0] > linear.snr_db[1] + 6 > 50
    assert operation_table(list(found.values())).row_count == 2


def test_the_table_can_tell_right_from_wrong() -> None:
    exact = np.linspace(-2, 2, 256)
    rounded = exact.astype(np.float16).astype(np.float64)
    same, off = judged("x", rounded, rounded, exact), judged("x", rounded, rounded * 1.01, exact)
    assert (same.equal, same.apart) == (1, 0)
    assert same.steps is not None
    assert same.steps[0] <= 0.5
    assert off.equal is not None
    assert off.equal < 0.1
    assert off.apart is not None
    assert off.apart > 5


def test_modules_are_apart_beyond_ten_decibels_and_below_a_hundred() -> None:
    modules = tuple(ModuleRow(name, "X", *db) for name, db in {"a": (60, 71), "b": (60, 69), "c": (130, 95)}.items())
    found = Crosscheck("unet", ("a", "b"), ("", ""), (), "case-000", modules)
    assert [row.path for row in found.disagreements] == ["a"]


def test_the_corpus_is_what_the_components_are_made_of() -> None:
    names = [operation.name for operation in OPERATIONS]
    assert len(names) == len(set(names)) >= 15
    for operation in OPERATIONS:
        for value in (*operation.inputs(), *operation.module().parameters()):
            assert bool((value.half().float() == value).all()), operation.name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give two artifacts"),
        (["one.onnx"], "give two artifacts"),
        (["one.onnx", "two.onnx", "three.onnx"], "give two artifacts"),
        (["--ops", "one.onnx"], "leave out ARTIFACTS"),
    ],
)
def test_usage(arguments: list[str], message: str, tmp_path: Path) -> None:
    for name in ("one.onnx", "two.onnx", "three.onnx"):
        (tmp_path / name).touch()
    fails(md_export("crosscheck", *arguments, cwd=tmp_path), 2, message)


def test_a_pair_that_is_none(exported: Exported) -> None:
    out = exported("onnx", "int8")
    fails(md_export("crosscheck", out / "unet.onnx", out / "vae_decoder.onnx"), 2, "is the unet", "the vae_decoder")
    fails(md_export("crosscheck", out / "unet.onnx", out / "unet.onnx"), 2, "twice")
    fails(md_export("crosscheck", out / "none.onnx", out / "unet.onnx"), 1, "none.onnx")
