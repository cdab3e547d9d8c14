"""A saved file computes what torch computes, in every precision; damaged weights are noticed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from md_export.targets import TARGETS

target = TARGETS["onnx"].open()

COMPONENT_NAMES = ("text_encoder", "unet", "vae_decoder")
# Decibels on random weights.
LEAST = {"fp32": 90.0, "fp16": 48.0, "int8": 20.0}
# Matrices without which the result is another one, even where random residual branches hardly count.
FLIPPED = {"text_encoder": "encoder.layers.1.mlp.fc2", "unet": "conv_in", "vae_decoder": "decoder.conv_in"}
STORED = {"fp32": np.float32, "fp16": np.float16, "int8": np.int8}

every_artifact = pytest.mark.parametrize(
    ("component", "scheme"), [(component, scheme) for component in COMPONENT_NAMES for scheme in LEAST]
)


def damage(source: Path, path: Path, change: Callable[[dict[str, np.ndarray[Any, Any]]], str]) -> Path:
    """Copy a model after ``change`` altered one of its writable initializers and returned its name."""
    model = onnx.load(source)
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor).copy() for tensor in model.graph.initializer}
    name = change(arrays)
    for tensor in model.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(onnx.numpy_helper.from_array(arrays[name], name))
    onnx.save(model, path)
    return path


@every_artifact
def test_a_file_computes_what_torch_computes(
    component: str, scheme: str, subject: Callable[..., Any], artifact: Callable[..., Path]
) -> None:
    assert subject(component).snr_db(artifact(component, scheme)) >= LEAST[scheme]


@every_artifact
def test_a_flipped_weight_block_fails(
    component: str, scheme: str, subject: Callable[..., Any], artifact: Callable[..., Path], tmp_path: Path
) -> None:
    def flip(arrays: dict[str, np.ndarray[Any, Any]]) -> str:
        name = next(n for n, a in arrays.items() if n.startswith(f"{FLIPPED[component]}.weight") and a.ndim > 1)
        assert arrays[name].dtype == STORED[scheme]
        arrays[name].reshape(-1)[:256] *= -1
        return name

    assert subject(component).snr_db(damage(artifact(component, scheme), tmp_path / "x.onnx", flip)) < LEAST[scheme]


@every_artifact
def test_a_nan_in_a_weight_is_named_and_fails(
    component: str, scheme: str, subject: Callable[..., Any], artifact: Callable[..., Path], tmp_path: Path
) -> None:
    """QuantizeLinear hides a NaN from the output, so ``describe`` has to find it."""
    poisoned = []

    def poison(arrays: dict[str, np.ndarray[Any, Any]]) -> str:
        name = next(n for n, a in arrays.items() if a.dtype == STORED["fp16" if scheme == "fp16" else "fp32"])
        arrays[name].reshape(-1)[0] = np.nan
        poisoned.append(name)
        return name

    path = damage(artifact(component, scheme), tmp_path / "x.onnx", poison)
    assert target.describe(artifact(component, scheme)).not_finite == ()
    assert target.describe(path).not_finite == tuple(poisoned)
    if scheme != "int8":
        (found,) = target.load(path).run(subject(component).held_out).values()
        assert not np.isfinite(found).all()


def test_other_widths_with_gelu_and_relu_attention(subject: Callable[..., Any], artifact: Callable[..., Path]) -> None:
    for component, scheme in (("text_encoder", "fp32"), ("unet", "int8"), ("vae_decoder", "fp16")):
        found = subject(component, "other").snr_db(artifact(component, scheme, "other"))
        assert found >= LEAST[scheme], component


def test_exporting_leaves_the_module_as_it_was(subject: Callable[..., Any], artifact: Callable[..., Path]) -> None:
    for scheme in LEAST:
        artifact("vae_decoder", scheme)
    decoder = subject("vae_decoder")
    with torch.no_grad():
        again = decoder.job.module(torch.from_numpy(decoder.held_out["latent"])).numpy()
    assert again.dtype == np.float32
    assert np.array_equal(again, decoder.expected)
