"""A float16 file is judged with its results rounded, as torch's own half model rounds them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from md_export.parity.metrics import compare
from md_export.spec.tensors import Array
from md_export.targets import TARGETS
from md_export.targets.lowering import half_copy
from md_export.targets.onnx.run import rounded_graph

target = TARGETS["onnx"].open()


def plain(path: Path, inputs: dict[str, Array]) -> Array:
    """By onnxruntime as an app opens it."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (value,) = session.run(None, inputs)
    found: Array = value
    return found


@pytest.mark.parametrize("component", ["text_encoder", "unet", "vae_decoder"])
def test_rounding_costs_what_it_costs_in_torch(
    component: str, subject: Callable[..., Any], artifact: Callable[..., Path]
) -> None:
    """Different places of rounding and orders of summation are worth 2 dB."""
    case = subject(component)
    module = half_copy(case.job.module)
    with torch.no_grad():
        half = module(*(torch.from_numpy(case.held_out[spec.name]) for spec in case.job.inputs)).numpy()
    wanted = compare(half, case.expected).snr_db
    assert abs(case.snr_db(artifact(component, "fp16")) - wanted) < 2


def test_onnxruntime_alone_hides_float16(subject: Callable[..., Any], artifact: Callable[..., Path]) -> None:
    """Why all this: on a processor without float16 arithmetic it drops the rounding between most operators."""
    decoder, path = subject("vae_decoder"), artifact("vae_decoder", "fp16")
    found = compare(plain(path, decoder.held_out), decoder.expected).snr_db
    assert found > decoder.snr_db(path) + 5


@pytest.fixture
def overflowing(tmp_path: Path) -> Path:
    """x · 300 · 300 / 90000: 90000 is more than float16 holds."""
    factors = {"up": 300.0, "again": 300.0, "down": 1 / 90000}
    constants = [numpy_helper.from_array(np.array(value, np.float16), name) for name, value in factors.items()]
    nodes = [
        helper.make_node("Cast", ["x"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Mul", ["half", "up"], ["first"]),
        helper.make_node("Mul", ["first", "again"], ["second"]),
        helper.make_node("Mul", ["second", "down"], ["third"]),
        helper.make_node("Cast", ["third"], ["y"], to=TensorProto.FLOAT),
    ]
    surface = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in "xy"]
    graph = helper.make_graph(nodes, "overflowing", surface[:1], surface[1:], constants)
    path = tmp_path / "x.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


@pytest.mark.parametrize("runtime", [None, "unoptimized"])
def test_an_overflow_is_seen(overflowing: Path, runtime: str | None) -> None:
    ones = np.ones((1, 4), np.float32)
    assert np.isfinite(plain(overflowing, {"x": ones})).all()
    assert np.isinf(target.load(overflowing, runtime).run({"x": ones})["y"]).all()


def test_values_between_operators_are_rounded_and_keep_their_names(overflowing: Path) -> None:
    third = np.full((1, 4), 1 / 3, np.float32)
    found = target.values(overflowing, {"x": third}, ["half", "first", "y"])
    for name, exact in (("half", third), ("first", 300 * found["half"])):
        assert np.array_equal(found[name], exact.astype(np.float16).astype(np.float32)), name
    assert not np.array_equal(found["half"], third)


def test_a_float32_file_is_left_alone(artifact: Callable[..., Path]) -> None:
    assert rounded_graph(artifact("vae_decoder", "fp32")) is None
    assert rounded_graph(artifact("vae_decoder", "int8")) is None
    assert rounded_graph(artifact("vae_decoder", "fp16")) is not None
