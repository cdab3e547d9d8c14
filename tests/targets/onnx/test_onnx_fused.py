"""Forms that onnxruntime's optimizer writes: right, told apart, and refused where a portable graph is needed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from click.testing import CliRunner

from md_export.cli import cli
from md_export.engine.artifact import BuildStep, build_component
from md_export.errors import ConversionError, RecipeError, RuntimeFault, UsageError
from md_export.parity.golden.folder import read_golden
from md_export.parity.metrics import compare
from md_export.spec.artifact import bytes_of_artifact, data_of, is_unchanged
from md_export.spec.recipe import Recipe
from md_export.spec.recipe_file import load_recipe, recipe_from_dict, recipe_to_dict
from md_export.spec.scheme import QuantScheme
from md_export.spec.shipped_files import builtin_recipe
from md_export.targets import TARGETS, target_of
from md_export.targets.contract import labelled
from md_export.targets.execution import execute
from md_export.targets.onnx.target import OnnxModel
from support import Exported

target = TARGETS["onnx"].open()
SUFFIXES = {"ort": ".ort", "cpu_fused": ".onnx"}
Fuse = Callable[[str, str], Path]


@pytest.fixture
def fuse(artifact: Callable[..., Path], tmp_path: Path) -> Fuse:
    """``fuse(scheme, form)``: the decoder in that form."""

    def make(scheme: str, form: str) -> Path:
        model = ir.load(artifact("vae_decoder", scheme))
        model.metadata_props.update(labelled({"form": form}))
        path = tmp_path / f"fused{SUFFIXES[form]}"
        OnnxModel(model).save(path)
        return path

    return make


@pytest.mark.parametrize("form", SUFFIXES)
@pytest.mark.parametrize("scheme", ["fp32", "int8"])
def test_it_computes_the_same(
    scheme: str, form: str, fuse: Fuse, subject: Callable[..., Any], artifact: Callable[..., Path]
) -> None:
    inputs = subject("vae_decoder").held_out
    found = target.load(fuse(scheme, form)).run(inputs)["image"]
    # By the kernels that were fused: those of int8 overflow on processors without VNNI, where ours are the exact ones.
    session = ort.InferenceSession(str(artifact("vae_decoder", scheme)), providers=["CPUExecutionProvider"])
    (wanted,) = session.run(["image"], dict(inputs))
    assert compare(found, wanted).snr_db > (100 if scheme == "fp32" else 40)


def test_what_is_inside_an_ort_file_is_told(fuse: Fuse, artifact: Callable[..., Path]) -> None:
    found, portable = (target.describe(path) for path in (fuse("int8", "ort"), artifact("vae_decoder", "int8")))
    assert found.notes == {"form": "ort"} and portable.notes == {}
    assert found.ops["com.microsoft::QLinearConv"] > 10 and found.ops["Resize"] == portable.ops["Resize"]
    assert found.stored["int8"] >= portable.stored["int8"]


def test_an_ort_file_is_for_any_processor_and_the_other_is_not(fuse: Fuse) -> None:
    assert not any("nchwc" in kind for kind in target.describe(fuse("fp32", "ort")).ops)
    assert any("::" in kind for kind in target.describe(fuse("fp32", "cpu_fused")).ops)


def test_bytes_are_the_same_each_time(fuse: Fuse) -> None:
    """Not so those of an ``.ort`` file: see docs/onnx.md."""
    assert fuse("int8", "cpu_fused").read_bytes() == fuse("int8", "cpu_fused").read_bytes()


@pytest.mark.parametrize("form", SUFFIXES)
def test_who_looks_for_modules_is_told_why_not(form: str, fuse: Fuse) -> None:
    path = fuse("int8", form)
    for look in (
        lambda: target.graph(path),
        lambda: target.values(path, {}, ["image"]),
        lambda: list(target.stored_weights(path, QuantScheme("int8", "int8_static"))),
        lambda: target.edit(path).__enter__(),
        lambda: target.store_as_float(path),
    ):
        with pytest.raises(RuntimeFault, match=r"was fused by onnxruntime.* without --ort"):
            look()


@pytest.mark.parametrize("size", [0, 100, 20_000])
def test_a_damaged_ort_file_is_refused(size: int, fuse: Fuse) -> None:
    path = fuse("int8", "ort")
    path.write_bytes(path.read_bytes()[:size])
    for read in (target.load, target.describe):
        with pytest.raises(RuntimeFault, match=r"onnxruntime cannot run fused\.ort|fused\.ort is not") as caught:
            read(path)
        assert "\n" not in str(caught.value)


def test_weights_beside_it(
    fuse: Fuse, subject: Callable[..., Any], artifact: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    __import__("md_export.targets.onnx.save")
    monkeypatch.setattr(sys.modules["md_export.targets.onnx.save"], "INLINE_BYTES", 100_000)
    with pytest.raises(ConversionError, match="hold 2 GB at most"):
        fuse("fp32", "ort")
    path, inputs = fuse("fp32", "cpu_fused"), subject("vae_decoder").held_out
    assert path.with_name("fused.onnx.data").stat().st_size > 10 * path.stat().st_size
    found, wanted = (target.load(item).run(inputs)["image"] for item in (path, artifact("vae_decoder", "fp32")))
    assert compare(found, wanted).snr_db > 100


def decoder_recipe(precision: str, **fields: Any) -> Recipe:
    return replace(load_recipe(builtin_recipe("onnx", precision)), **fields).narrowed(("vae_decoder",))


@pytest.fixture
def build(nano: Path, exported: Exported, tmp_path: Path) -> Callable[[Recipe], Any]:
    def make(recipe: Recipe) -> Any:
        golden = exported("onnx", "int8") / "golden"
        return build_component(BuildStep(nano, "vae_decoder", recipe, golden, tmp_path, {}))

    return make


def test_an_export_of_ort_files(build: Callable[[Recipe], Any], exported: Exported, tmp_path: Path) -> None:
    entry = build(decoder_recipe("int8", form="ort"))
    path = tmp_path / "vae_decoder.ort"
    assert entry.file == path.name and is_unchanged(tmp_path, entry)
    assert target_of(path).name == "onnx"
    case = read_golden(exported("onnx", "int8") / "golden").cases[1]
    run = execute("onnx", path, [case.inputs("vae_decoder")])
    assert run.found.notes["form"] == "ort" and run.found.ops == entry.ops
    assert compare(run.outputs[0]["image"], case.output("vae_decoder", "image")).snr_db > 20


def test_weights_beside_a_file_are_listed_and_hashed(
    build: Callable[[Recipe], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    __import__("md_export.targets.onnx.save")
    monkeypatch.setattr(sys.modules["md_export.targets.onnx.save"], "INLINE_BYTES", 100_000)
    entry = build(decoder_recipe("fp32"))
    data = tmp_path / "vae_decoder.onnx.data"
    assert (entry.data, data_of(tmp_path / entry.file)) == (data.name, data)
    assert entry.bytes == bytes_of_artifact(tmp_path / entry.file) > data.stat().st_size
    places = {
        item.value
        for tensor in onnx.load(tmp_path / entry.file, load_external_data=False).graph.initializer
        for item in tensor.external_data
        if item.key == "location"
    }
    assert places == {data.name}
    content = np.fromfile(data, np.uint8)
    content[len(content) // 2] ^= 1
    content.tofile(data)
    assert not is_unchanged(tmp_path, entry)


def test_a_form_is_for_onnx_and_not_for_float16() -> None:
    with pytest.raises(RecipeError, match="form is for the target onnx"):
        replace(load_recipe(builtin_recipe("coreml", "fp32")), form="ort")
    with pytest.raises(RecipeError, match=r"form ort cannot compute .*vae_decoder in float16.*--fp32, --int8"):
        decoder_recipe("fp16", form="ort")
    recipe = decoder_recipe("int8", form="cpu_fused")
    assert recipe_from_dict(recipe_to_dict(recipe), "x").form == "cpu_fused"


@pytest.mark.parametrize(("flags", "message"), [(["--ort"], "in float16"), (["--cpu-fused", "--fp16"], "cpu_fused")])
def test_flags_reach_the_recipe(flags: list[str], message: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["onnx", *flags, "-o", str(tmp_path / "out")])
    assert isinstance(result.exception, UsageError) and message in str(result.exception)


def with_plain_biases(model: ir.Model) -> ir.Model:
    """As the exporter writes them."""
    for value in model.graph.initializers.values():
        if value.const_value is not None and tuple(value.const_value.shape)[:-1] == (1, 1):
            values = value.const_value.numpy().reshape(-1)
            value.const_value, value.shape = ir.tensor(values, name=value.name), ir.Shape(values.shape)
    return model


def test_linear_layers_with_a_bias_run_in_int8(artifact: Callable[..., Path], tmp_path: Path) -> None:
    path = artifact("text_encoder", "int8")
    layers = len([name for name in target.describe(artifact("text_encoder", "fp32")).float_weights if "MatMul" in name])
    for name, model in (("ours", ir.load(path)), ("plain", with_plain_biases(ir.load(path)))):
        model.metadata_props.update(labelled({"form": "ort"}))
        OnnxModel(model).save(tmp_path / f"{name}.ort")
    ours, plain = (target.describe(tmp_path / f"{name}.ort").ops for name in ("ours", "plain"))
    assert ours["com.microsoft::MatMulIntegerToFloat"] == layers > 10 and "Gemm" not in ours
    assert plain["Gemm"] > 10
