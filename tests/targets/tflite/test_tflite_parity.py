"""A saved file computes what torch computes, in every precision; damaged weights are noticed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from md_export.targets import TARGETS
from md_export.targets.tflite.flatbuffer import DTYPES, operator_name, read_model, weighted_ops

target = TARGETS["tflite"].open()

COMPONENT_NAMES = ("text_encoder", "unet", "vae_decoder")
# Decibels on random weights.
LEAST = {"fp32": 90.0, "fp16": 55.0, "int8": 20.0, "int8_weights": 25.0, "int8_static": 15.0}
SHIPPED = ("fp32", "fp16", "int8")
# A layer whose error no later layer hides.
LAST = {"text_encoder": "encoder.layers.1.mlp.fc2", "unet": "conv_out", "vae_decoder": "decoder.conv_out"}

every_artifact = pytest.mark.parametrize(
    ("component", "scheme"), [(component, scheme) for component in COMPONENT_NAMES for scheme in SHIPPED]
)


def damage(source: Path, path: Path, module: str, operand: int, change: Callable[[Any], None]) -> Path:
    """Copy a file after ``change`` altered the weight (1) or bias (2) of a convolution or linear layer in place."""
    model, content = read_model(source), bytearray(source.read_bytes())
    graph, tables = model.subgraphs[0], schema.Model.GetRootAs(content)
    (output,) = (op.output for op in weighted_ops(model) if op.module == module)
    (layer,) = (op for op in graph.operators if graph.tensors[op.outputs[0]].name.decode() == output)
    dequantized = {op.outputs[0]: op.inputs[0] for op in graph.operators if operator_name(model, op) == "DEQUANTIZE"}
    tensor = graph.tensors[dequantized.get(layer.inputs[operand], layer.inputs[operand])]
    buffer = tables.Buffers(tensor.buffer)
    stored = (
        np.frombuffer(content, np.uint8, buffer.Size(), buffer.Offset()) if buffer.Offset() else buffer.DataAsNumpy()
    )
    change(stored.view(DTYPES[tensor.type]))
    path.write_bytes(content)
    return path


def poison(values: np.ndarray[Any, Any]) -> None:
    values[0] = np.nan


@pytest.mark.parametrize("component", COMPONENT_NAMES)
@pytest.mark.parametrize("scheme", LEAST)
def test_a_file_computes_what_torch_computes(
    component: str, scheme: str, subject: Callable[..., Any], artifact: Callable[..., Path]
) -> None:
    assert subject(component).snr_db(artifact(component, scheme)) >= LEAST[scheme]


@every_artifact
def test_a_flipped_weight_block_fails(
    component: str, scheme: str, subject: Callable[..., Any], artifact: Callable[..., Path], tmp_path: Path
) -> None:
    def flip(weight: np.ndarray[Any, Any]) -> None:
        weight[: weight.size // 2] *= -1

    path = damage(artifact(component, scheme), tmp_path / "x.tflite", LAST[component], 1, flip)
    assert subject(component).snr_db(path) < LEAST[scheme]


@every_artifact
def test_a_nan_in_a_bias_reaches_the_output(
    component: str, scheme: str, subject: Callable[..., Any], artifact: Callable[..., Path], tmp_path: Path
) -> None:
    path = damage(artifact(component, scheme), tmp_path / "x.tflite", LAST[component], 2, poison)
    (found,) = target.load(path).run(subject(component).held_out).values()
    assert not np.isfinite(found).all()


def test_a_nan_that_dynamic_ranges_hide_is_seen_in_the_file(
    subject: Callable[..., Any], artifact: Callable[..., Path], tmp_path: Path
) -> None:
    text, whole = subject("text_encoder"), artifact("text_encoder", "int8")
    path = damage(whole, tmp_path / "x.tflite", "encoder.layers.1.self_attn.v_proj", 2, poison)
    (found,) = target.load(path).run(text.held_out).values()
    # XNNPACK's kernels for some processors turn the NaN into an integer; those for others pass it on.
    assert not np.isfinite(found).all() or text.snr_db(path) >= LEAST["int8"]
    (name,) = target.describe(path).not_finite
    assert "encoder.layers.1.self_attn.v_proj;" in name
    assert target.describe(whole).not_finite == ()


@every_artifact
def test_running_twice_gives_the_same_bits(
    component: str, scheme: str, subject: Callable[..., Any], artifact: Callable[..., Path]
) -> None:
    runner = target.load(artifact(component, scheme))
    (first,), (second,) = (runner.run(subject(component).held_out).values() for _ in range(2))
    assert np.array_equal(first, second)


@pytest.mark.parametrize("scheme", SHIPPED)
def test_other_widths_with_gelu_and_relu_attention(
    scheme: str, subject: Callable[..., Any], artifact: Callable[..., Path]
) -> None:
    for component in COMPONENT_NAMES:
        assert subject(component, "other").snr_db(artifact(component, scheme, "other")) >= LEAST[scheme], component
