"""A saved file computes what torch computes, in every precision; damaged weights are noticed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from md_export.targets import onnx as target

COMPONENT_NAMES = ("text_encoder", "unet", "vae_decoder")
# Decibels on random weights.
LEAST = {"fp32": 90.0, "fp16": 55.0, "int8": 20.0}
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
        # The middle matrix in graph order: neither an unused token's row nor the first or last layer.
        names = [n for n, a in arrays.items() if a.dtype == STORED[scheme] and a.ndim > 1 and "embedding" not in n]
        name = names[len(names) // 2]
        arrays[name].reshape(-1)[:256] *= -1
        return name

    assert subject(component).snr_db(damage(artifact(component, scheme), tmp_path / "x.onnx", flip)) < LEAST[scheme]


@every_artifact
def test_a_nan_in_a_weight_reaches_the_output(
    component: str, scheme: str, subject: Callable[..., Any], artifact: Callable[..., Path], tmp_path: Path
) -> None:
    def poison(arrays: dict[str, np.ndarray[Any, Any]]) -> str:
        name = next(n for n, a in arrays.items() if a.dtype in (np.float16, np.float32) and "norm" in n and a.size > 1)
        arrays[name].reshape(-1)[:] = np.nan
        return name

    runner = target.load(damage(artifact(component, scheme), tmp_path / "x.onnx", poison))
    (found,) = runner.run(subject(component).held_out).values()
    assert not np.isfinite(found).all()


def test_fp16_fails_where_the_time_embedding_is_half(
    subject: Callable[..., Any], make: Callable[..., Path], artifact: Callable[..., Path], tmp_path: Path
) -> None:
    """What the float32 table is for: with a float16 one the same export falls below the threshold."""
    unet = subject("unet")
    whole = unet.job.module.time_embedding.frequencies
    unet.job.module.time_embedding.frequencies = whole.half().float()
    try:
        job = replace(unet.job, scheme=replace(unet.job.scheme, weights="float16", activations="float16"))
        path = make(replace(job, workdir=tmp_path), tmp_path / "half_table.onnx")
    finally:
        unet.job.module.time_embedding.frequencies = whole
    assert unet.snr_db(path) < unet.snr_db(artifact("unet", "fp16")) - 3


@pytest.mark.parametrize("scheme", LEAST)
def test_other_widths_with_gelu_and_relu_attention(
    scheme: str, subject: Callable[..., Any], artifact: Callable[..., Path]
) -> None:
    for component in COMPONENT_NAMES:
        assert subject(component, "other").snr_db(artifact(component, scheme, "other")) >= LEAST[scheme], component


def test_exporting_leaves_the_module_as_it_was(subject: Callable[..., Any], artifact: Callable[..., Path]) -> None:
    for scheme in LEAST:
        artifact("vae_decoder", scheme)
    decoder = subject("vae_decoder")
    with torch.no_grad():
        again = decoder.job.module(torch.from_numpy(decoder.held_out["latent"])).numpy()
    assert again.dtype == np.float32
    assert np.array_equal(again, decoder.expected)
