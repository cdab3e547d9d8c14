"""What an int8 file stores, what stays float on request, and what is refused."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from md_export.errors import ConversionError, RuntimeFault
from md_export.spec.recipe import QuantScheme
from md_export.targets import TARGETS

target = TARGETS["onnx"].open()

INT8 = QuantScheme("int8", "int8_static")
ROOT = "decoder.mid_block.resnets.0"


@pytest.mark.parametrize(
    ("component", "kept"),
    [("text_encoder", []), ("unet", ["conv_out/Conv"]), ("vae_decoder", ["decoder.conv_out/Conv"])],
)
def test_every_weight_is_int8_but_those_kept(component: str, kept: list[str], artifact: Callable[..., Path]) -> None:
    found = target.describe(artifact(component, "int8"))
    assert list(found.float_weights) == kept
    whole = target.describe(artifact(component, "fp32"))
    assert found.int8_weights == len(whole.float_weights) - len(kept)
    # At these widths the causal mask and the position table weigh as much as a layer.
    assert found.stored["float32"] < 0.4 * whole.stored["float32"]


@pytest.mark.parametrize(("scheme", "dtype"), [("fp32", "float32"), ("fp16", "float16")])
def test_float_files_hold_no_integers(scheme: str, dtype: str, artifact: Callable[..., Path]) -> None:
    found = target.describe(artifact("vae_decoder", scheme))
    assert onnx.load(artifact("vae_decoder", scheme)).opset_import[0].version == 18
    assert found.int8_weights == 0
    assert found.ops["Conv"] == len(found.float_weights) == 21
    assert found.stored[dtype] > 0.99 * sum(found.stored.values())
    assert {"QuantizeLinear", "DequantizeLinear"}.isdisjoint(found.ops)


def test_activations_are_uint8_and_weights_int8_per_channel(artifact: Callable[..., Path]) -> None:
    graph = onnx.load(artifact("vae_decoder", "int8")).graph
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    zero_points = {arrays[node.input[2]].dtype.name for node in graph.node if node.op_type == "QuantizeLinear"}
    assert zero_points == {"uint8"}
    assert arrays[f"{ROOT}.conv1.weight_scale"].shape == (64,)


def test_keep_float_reaches_embeddings_and_linears(
    subject: Callable[..., Any], make: Callable[..., Path], tmp_path: Path
) -> None:
    scheme = replace(INT8, keep_float=("embeddings.*", "*.fc1"), granularity="tensor")
    found = target.describe(make(subject("text_encoder").with_scheme(scheme, tmp_path), tmp_path / "x.onnx"))
    assert list(found.float_weights) == [
        "embeddings.token_embedding/Gather",
        "encoder.layers.0.mlp.fc1/MatMul",
        "encoder.layers.1.mlp.fc1/MatMul",
    ]


def test_scratch_files_stay_in_the_workdir(
    subject: Callable[..., Any], make: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "does-not-exist"))
    job = subject("vae_decoder").with_scheme(INT8, tmp_path / "work")
    assert make(job, tmp_path / "x.onnx").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"work", "x.onnx"}


def test_large_weights_go_beside_the_file(
    subject: Callable[..., Any],
    make: Callable[..., Path],
    artifact: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The package's attribute of this name is the function.
    monkeypatch.setattr(sys.modules["md_export.targets.onnx.save"], "INLINE_BYTES", 100_000)
    decoder = subject("vae_decoder")
    path = make(decoder.with_scheme(replace(INT8, keep_float=("decoder.conv_out",)), tmp_path), tmp_path / "x.onnx")
    assert path.stat().st_size < 200_000 < (tmp_path / "x.onnx.data").stat().st_size
    inline = artifact("vae_decoder", "int8")
    assert target.describe(path) == target.describe(inline)
    found, expected = (target.load(p).run(decoder.held_out)["image"] for p in (path, inline))
    assert np.array_equal(found, expected)
    (tmp_path / "x.onnx.data").unlink()
    for read in (target.load, target.describe):
        with pytest.raises(RuntimeFault, match=r"x\.onnx"):
            read(path)


@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        (QuantScheme("int8", "int8_dynamic"), "use one of float32/float32, float16/float16, int8/int8_static"),
        (QuantScheme("float16", "int8_static"), "no weights/activations float16/int8_static"),
        (QuantScheme("palette4", "int8_static", "tensor"), "no weights/activations palette4/int8_static"),
        (replace(INT8, sparsity=0.5), "the onnx target has no sparsity = 0.5; it stores all values"),
        (replace(INT8, granularity="block", block_size=32), "onnx has no blocks with int8_static"),
        (replace(INT8, keep_float=("decoder.*", "no_such.*")), r"'no_such\.\*' matches no convolution"),
    ],
)
def test_what_cannot_be_done_is_refused(
    scheme: QuantScheme, message: str, subject: Callable[..., Any], make: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(ConversionError, match=message):
        make(subject("vae_decoder").with_scheme(scheme, tmp_path), tmp_path / "x.onnx")
    assert not (tmp_path / "x.onnx").exists()


def test_static_int8_needs_calibration(subject: Callable[..., Any], make: Callable[..., Path], tmp_path: Path) -> None:
    job = replace(subject("vae_decoder").with_scheme(INT8, tmp_path), calibration=())
    with pytest.raises(ConversionError, match="needs calibration inputs"):
        make(job, tmp_path / "x.onnx")


def test_calibration_of_another_shape_is_an_error_of_ours(
    subject: Callable[..., Any], make: Callable[..., Path], tmp_path: Path
) -> None:
    wrong = {"latent": np.zeros((1, 8, 4, 4), np.float32)}
    job = replace(subject("vae_decoder").with_scheme(INT8, tmp_path), calibration=(wrong,))
    with pytest.raises(ConversionError, match="quantizer failed"):
        make(job, tmp_path / "x.onnx")
