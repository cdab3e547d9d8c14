"""``md-export lint`` on TFLite files: what the engine refuses, and float16 bounds on golden inputs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cli.test_cli import fails, md_export
from md_export.diagnose.lint import FLOAT16_BUDGET_DB, budget_of, lint
from md_export.errors import ArtifactError, RuntimeFault, UsageError
from md_export.parity.golden.folder import read_golden
from md_export.spec.artifact import GOLDEN_FOLDER
from md_export.spec.manifest import read_manifest
from md_export.spec.tensors import Arrays, write_npz
from md_export.targets.lint.judge import fits
from md_export.targets.lint.report import LintReport
from md_export.targets.lint.rules import EngineRule, rules_of
from md_export.targets.operations import Op, Value
from md_export.targets.tflite.describe import graph_ops
from md_export.targets.tflite.half.activations import Recorder, write_float_weights
from md_export.targets.tflite.half.terms import terms_of
from md_export.targets.tflite.lint import lint as lint_file
from planted import COMPONENT
from support import Exported

DECODER = "vae_decoder"


def op(
    kind: str,
    shape: tuple[int, ...] = (1, 4, 4, 8),
    inputs: tuple[str, ...] = ("a", "b"),
    *others: tuple[int, ...],
    stored: str = "",
) -> Op:
    shapes = others or ((),) * len(inputs)
    reads = tuple(Value(name, given) for name, given in zip(inputs, shapes, strict=True))
    return Op(kind, "module", reads, (Value("out", shape),), stored)


FITTING = {
    "broadcast-to": op("BROADCAST_TO"),
    "rank-over-4": op("RESHAPE", (1, 2, 3, 4, 5)),
    "same-tensor-twice": op("BATCH_MATMUL", inputs=("a", "a")),
    "masked-attention-rank-4": op("ADD", (1, 12, 77, 77), ("a", "b"), (1, 12, 77, 77), (1, 1, 77, 77)),
    "int8-fully-connected": op("FULLY_CONNECTED", stored="int8"),
    "float16-embedding": op("EMBEDDING_LOOKUP", stored="float16"),
    "wide-convolution": op("CONV_2D", (1, 32, 32, 640), ("a", "b"), (1, 32, 32, 960), (640, 3, 3, 960), stored="int8"),
    "taken": op("CONV_2D", stored="int8"),
}


HEALTHY = [
    op("MUL", inputs=("a", "a")),
    op("ADD", (1, 8, 8, 3), ("a", "b"), (1, 8, 8, 3), (1, 1, 1, 3)),
    op("FULLY_CONNECTED", stored="float32"),
    op("EMBEDDING_LOOKUP", stored="int8"),
    op("CONV_2D", stored="int8"),
    op("CONV_2D", (1, 32, 32, 640), ("a", "b"), (1, 32, 32, 910), (640, 3, 3, 910), stored="int8"),
]


@pytest.mark.parametrize("rule", rules_of("tflite").rule, ids=lambda rule: rule.id)
def test_each_rule_fits_what_it_speaks_of(rule: EngineRule) -> None:
    assert fits(FITTING[rule.id], rule.when)
    assert rule.verdict == "likely" or not any(fits(one, rule.when) for one in HEALTHY)


@pytest.mark.parametrize(
    ("plant", "rule"),
    [
        ("broadcast", "broadcast-to"),
        ("rank5", "rank-over-4"),
        ("masked", "masked-attention-rank-4"),
        ("wide", "wide-convolution"),
    ],
)
def test_what_the_engine_does_not_do_is_found_in_a_file(planted: Callable[[str], Path], plant: str, rule: str) -> None:
    (report,) = lint(planted(plant) / f"{COMPONENT}.tflite")
    found = [item for item in report.ops if rule in item.rules]
    assert {item.module.split(".")[0] for item in found} == {"middle"}
    assert {item.verdict for item in found} == {"unlikely"}
    assert report.bounds is None


def test_an_export_is_safe_from_the_version_that_its_recipe_names(exported: Exported) -> None:
    out = exported("tflite", "int8")
    manifest = read_manifest(out)
    known = [lint_file(out / entry.file).known for entry in manifest.artifacts]
    assert {None if found is None else found.safe_from for found in known} == {manifest.recipe.min_litert, None}
    for found in known:
        assert found is not None
        assert found.blocking(manifest.recipe.min_litert or "") is None


@pytest.fixture(scope="module")
def inputs(exported: Exported) -> Arrays:
    return read_golden(exported("tflite", "int8") / GOLDEN_FOLDER).cases[0].inputs(DECODER)


@pytest.fixture(scope="module")
def report(exported: Exported, inputs: Arrays, tmp_path_factory: pytest.TempPathFactory) -> LintReport:
    """Of one decoder and one golden case."""
    file = tmp_path_factory.mktemp("inputs") / "x.npz"
    write_npz(file, inputs)
    (found,) = lint(exported("tflite", "int8") / f"{DECODER}.tflite", inputs=file)
    return found


def test_every_op_of_an_export_is_bounded(exported: Exported, report: LintReport) -> None:
    ops = graph_ops(exported("tflite", "int8") / f"{DECODER}.tflite")
    assert report.bounds is not None
    assert [bound.name for bound in report.bounds] == [item.name for item in ops]
    assert {item.verdict for item in report.ops} == {"likely"}
    kinds = {"CONV_2D", "MEAN", "MUL", "ADD", "SUB", "RSQRT", "LOGISTIC"}
    assert {bound.kind for bound in report.bounds if bound.default} == kinds
    for bound in report.bounds:
        assert bound.default is None or bound.default.worst <= bound.default.probable <= bound.default.expected + 20
        assert not {"overflow", "sum-overflow", "long-sum", "loses"} & set(bound.rules), bound


def test_float32_sums_keep_the_budget_that_the_default_does_not(report: LintReport) -> None:
    """The finding about our own decoder, and the reason for what docs/android.md tells an app to ask for."""
    assert report.emulated_db is not None
    assert report.emulated_db >= 55
    below = [bound for bound in report.bounds or () if "loses-by-default" in bound.rules]
    assert {bound.kind for bound in below} == {"CONV_2D"}
    assert all(bound.module.startswith("decoder.") for bound in below)


def test_terms_of_real_activations_are_those_that_the_runtime_adds(
    exported: Exported, inputs: Arrays, tmp_path: Path
) -> None:
    """With int8 weights as the numbers that they stand for."""
    path = tmp_path / "floats.tflite"
    assert write_float_weights(exported("tflite", "int8") / f"{DECODER}.tflite", path)
    assert not write_float_weights(path, tmp_path / "again.tflite")
    for values in Recorder(path).run(inputs):
        terms = terms_of(values)
        if terms is not None and values.op.kind in ("CONV_2D", "MEAN", "ADD", "SUB"):
            slack = 1e-4 * terms.sizes + 1e-6
            assert (terms.sizes + slack >= terms.values.abs()).all()
            assert (terms.squares <= terms.sizes.square() + slack).all()


def test_the_budget_is_the_recipes_where_float16_can_keep_it(exported: Exported) -> None:
    manifest = read_manifest(exported("tflite", "int8"))
    entry, own = manifest.entry_for(DECODER), manifest.recipe.tolerances[DECODER]
    assert budget_of(manifest, entry) == own.snr_db < FLOAT16_BUDGET_DB
    exact = dataclasses.replace(own, snr_db=110.0)
    stricter = dataclasses.replace(manifest.recipe, tolerances={**manifest.recipe.tolerances, DECODER: exact})
    assert budget_of(dataclasses.replace(manifest, recipe=stricter), entry) == FLOAT16_BUDGET_DB


def test_lint_prints_what_was_measured_and_what_was_bounded(exported: Exported, inputs: Arrays, tmp_path: Path) -> None:
    write_npz(tmp_path / "x.npz", inputs)
    path = exported("tflite", "int8") / f"{DECODER}.tflite"
    result = md_export("lint", path, "--inputs", tmp_path / "x.npz", "--json", tmp_path / "lint.json")
    assert result.returncode == 0, result.stderr
    for words in ("LiteRT's GPU engine", "Bounded", "Measured", "FP16_WITH_FP32_ACCUM", "emulated as a whole"):
        assert words in result.stdout
    (values,) = json.loads((tmp_path / "lint.json").read_text())
    assert values["budget_db"] == 55.0
    assert values["cases"] == 1
    assert values["known"]["runtime"] == "LiteRT"
    assert {"default", "float32_sums", "partial_sum", "advice", "module"} <= set(values["bounds"][1])


def test_what_cannot_be_linted(exported: Exported, tmp_path: Path) -> None:
    path = exported("tflite", "int8") / f"{DECODER}.tflite"
    fails(md_export("lint", path, "--os", "iOS18"), 2, "--os chooses rules for Core ML packages; leave it out")
    (tmp_path / "x.tflite").write_bytes(b"no file at all, but long enough")
    with pytest.raises(ArtifactError, match=r"not a \.tflite file"):
        lint(tmp_path / "x.tflite")
    noise = np.random.default_rng(0)
    content = bytearray(path.read_bytes())
    for place in noise.integers(8, 4000, 200):
        content[place] = noise.integers(256)
    (tmp_path / "x.tflite").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"x\.tflite: .*corrupted"):
        lint(tmp_path / "x.tflite")
    np.savez(tmp_path / "x.npz", other=np.zeros(3, np.float32))
    with pytest.raises(RuntimeFault, match=r"vae_decoder\.tflite"):
        lint(path, inputs=tmp_path / "x.npz")
    with pytest.raises(UsageError, match="golden cases"):
        lint(exported("tflite", "int8"), inputs=tmp_path / "x.npz")
