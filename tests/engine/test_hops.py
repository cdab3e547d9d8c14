"""A fault planted in one stage of an export is named as that hop, and no other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import numpy as np
import onnx_ir as ir
import pytest
from torch import nn

from in_process import in_process
from md_export.diagnose.attribution.attribute import entry_of
from md_export.engine.export import export
from md_export.engine.hops import failing_hop, hops_of, measure, verdict
from md_export.errors import ConversionError, ParityError
from md_export.parity.golden.folder import read_golden
from md_export.rewrites import REWRITES, Rewrite
from md_export.spec.manifest import read_manifest
from md_export.spec.recipe import Recipe
from md_export.spec.recipe_file import load_recipe
from md_export.spec.sampler import OneStep
from md_export.spec.shipped_files import builtin_recipe
from md_export.spec.tensors import Array, Arrays, Runner
from md_export.targets.contract import LoweringJob
from md_export.targets.onnx import lower, quantize, run, saved
from md_export.targets.onnx.target import OnnxModel
from support import Exported

pytestmark = pytest.mark.slow
REWRITE = "linear_to_conv2d"


@pytest.fixture(autouse=True)
def planting(own_cache: None) -> Iterator[None]:
    """Steps in this process, where a test can plant something, and a cache that nobody else takes it from."""
    del own_cache
    with in_process():
        yield


def text_encoder() -> Recipe:
    """ONNX in int8 with one rewrite, and of few cases; what is not planted is right."""
    recipe = load_recipe(builtin_recipe("onnx", "int8")).narrowed(("text_encoder",))
    return dataclasses.replace(recipe, rewrites=(REWRITE,))


def scramble(values: ir.Value) -> None:
    """Reverse a constant's elements."""
    assert values.const_value is not None
    array = values.const_value.numpy()
    values.const_value = ir.tensor(np.ascontiguousarray(array.reshape(-1)[::-1].reshape(array.shape)))


def largest(model: ir.Model, dtype: str) -> ir.Value:
    """The largest constant of a type among those that are no table of tokens."""
    found = [
        value
        for value in model.graph.initializers.values()
        if value.const_value is not None and value.const_value.numpy().dtype == dtype and "token" not in str(value.name)
    ]
    return max(found, key=lambda value: value.const_value.nbytes if value.const_value else 0)


def plant_rewritten(monkeypatch: pytest.MonkeyPatch) -> None:
    right = REWRITES[REWRITE]

    def wrong(module: nn.Module, one_step: OneStep) -> int:
        fired = right.apply(module, one_step)
        layer = next(item for item in module.modules() if isinstance(item, nn.Conv2d))
        layer.weight = nn.Parameter(layer.weight.flip(0), requires_grad=False)
        return fired

    monkeypatch.setitem(cast(dict[str, Rewrite], REWRITES), REWRITE, dataclasses.replace(right, apply=wrong))


def plant_lowered(monkeypatch: pytest.MonkeyPatch) -> None:
    right = lower.lower

    def wrong(job: LoweringJob) -> OnnxModel:
        model = right(job)
        scramble(largest(model.model, "float32"))
        return model

    monkeypatch.setattr(lower, "lower", wrong)


def plant_quantized(monkeypatch: pytest.MonkeyPatch) -> None:
    right = quantize.quantize

    def wrong(model: OnnxModel, job: LoweringJob) -> OnnxModel:
        made = right(model, job)
        if job.scheme.weights == "int8":
            scramble(largest(made.model, "int8"))
        return made

    monkeypatch.setattr(quantize, "quantize", wrong)


def plant_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    right = run.load

    class Halved:
        def __init__(self, runner: Runner) -> None:
            self.runner = runner

        def run(self, inputs: Arrays) -> dict[str, Array]:
            return {name: np.multiply(value, 0.5, dtype=np.float32) for name, value in self.runner.run(inputs).items()}

    def wrong(path: Path, runtime: str | None = None) -> Runner:
        runner = right(path, runtime)
        return runner if runtime == run.UNOPTIMIZED else Halved(runner)

    monkeypatch.setattr(saved, "load", wrong)


@pytest.mark.parametrize(
    ("hop", "plant"),
    [
        ("rewritten", plant_rewritten),
        ("lowered", plant_lowered),
        ("quantized", plant_quantized),
        ("runtime", plant_runtime),
    ],
)
def test_a_rejected_export_names_the_hop_first(
    tmp_path: Path, nano: Path, monkeypatch: pytest.MonkeyPatch, hop: str, plant: Callable[[pytest.MonkeyPatch], None]
) -> None:
    plant(monkeypatch)
    with pytest.raises(ParityError) as raised:
        export(text_encoder(), nano, tmp_path / "out", progress=lambda _: None)
    told = str(raised.value).partition("what the checkpoint computes: ")[2]
    assert told.startswith(f"text_encoder: {hop} falls short first (")
    assert "below the recipe's 20 dB" in told
    (entry,) = read_manifest(tmp_path / "out.rejected").artifacts
    assert entry.rewritten_snr_db is not None
    assert (entry.rewritten_snr_db < 20) == (hop == "rewritten")


def test_a_module_that_nothing_rewrites_is_not_compared_with_itself(tmp_path: Path, nano: Path) -> None:
    recipe = load_recipe(builtin_recipe("onnx", "fp16")).narrowed(("text_encoder",))
    manifest, _ = export(recipe, nano, tmp_path / "out", progress=lambda _: None)
    assert [entry.rewritten_snr_db for entry in manifest.artifacts] == [None]


def test_a_right_export_has_no_failing_hop(exported: Exported, nano: Path) -> None:
    out = exported("onnx", "int8")
    manifest, cases = read_manifest(out), read_golden(out / "golden").cases[:2]
    entry = entry_of(manifest, out / "text_encoder.onnx")
    hops = measure(out, manifest, entry, cases, nano)
    assert [hop.name for hop in hops] == ["rewritten", "lowered", "quantized", "runtime"]
    assert failing_hop(hops) is None
    assert verdict(hops).startswith("no hop falls short")
    assert hops[0].snr_db > hops[2].snr_db
    assert hops[1].snr_db > 100 > hops[2].snr_db


def test_a_lowering_that_fails_is_a_hop(exported: Exported, nano: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(job: LoweringJob) -> ir.Model:
        raise ConversionError(f"{job.component}: planted")

    out = exported("onnx", "int8")
    monkeypatch.setattr(lower, "lower", fails)
    manifest = read_manifest(out)
    entry = entry_of(manifest, out / "text_encoder.onnx")
    hops = hops_of(out, manifest, entry, "case-000", nano, lower_again=True)
    failing = failing_hop(hops)
    assert failing is not None
    assert (failing.name, failing.failure) == ("lowered", "text_encoder: planted")
    assert verdict(hops).startswith("lowered falls short first (converted to onnx in float32: text_encoder: planted")
