"""Graphs quantized as Hexagon computes: every operation in integers, masks that leave room, names that stay apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from md_export.errors import ConversionError
from md_export.parity.metrics import compare
from md_export.spec.names import SOCS
from md_export.spec.recipe import QuantScheme
from md_export.spec.tensors import TensorSpec
from md_export.targets import TARGETS
from md_export.targets.contract import LoweringJob
from md_export.targets.onnx.npu.process import NpuLimits, compile_for_npu, execute_on_npu
from md_export.targets.onnx.run import UNOPTIMIZED

target = TARGETS["onnx"].open()
W8A16 = QuantScheme("int8", "int16_static")
SCHEMES = {"w8a16": W8A16, "w8a8": QuantScheme("int8", "int8_static"), "w4a16": QuantScheme("int4", "int16_static")}
_FLOATS = ("Cast", "QuantizeLinear", "DequantizeLinear")
Quantized = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def quantized(
    subject: Callable[..., Any], make: Callable[[LoweringJob, Path], Path], tmp_path_factory: pytest.TempPathFactory
) -> Quantized:
    """``quantized(component, scheme)``: the file for an NPU, made once; do not change it."""
    root = tmp_path_factory.mktemp("npu")

    def get(component: str, scheme: str) -> Path:
        path = root / f"{component}-{scheme}.onnx"
        if not path.exists():
            job = subject(component).with_scheme(SCHEMES[scheme], root / path.stem)
            make(replace(job, npu=True), path)
        return path

    return get


@pytest.mark.parametrize(
    ("component", "scheme", "least"),
    [
        ("vae_decoder", "w8a16", 30),
        ("vae_decoder", "w8a8", 15),
        ("vae_decoder", "w4a16", 5),
        ("text_encoder", "w8a16", 30),
    ],
)
def test_it_computes_the_same(
    component: str, scheme: str, least: float, quantized: Quantized, subject: Callable[..., Any]
) -> None:
    # As written, which the NPU takes: what onnxruntime fuses for a processor differs from version to version.
    assert subject(component).snr_db(quantized(component, scheme), UNOPTIMIZED) > least


@pytest.mark.parametrize("component", ["vae_decoder", "text_encoder"])
def test_every_operation_is_quantized(component: str, quantized: Quantized) -> None:
    graph = onnx.load(quantized(component, "w8a16")).graph
    floats = {value.name for value in graph.input if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
    made = {name: node.op_type for node in graph.node for name in node.output}
    constants = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type in _FLOATS:
            continue
        given = {made[name] for name in node.input if name in made}
        assert given <= {"DequantizeLinear"} and not set(node.input) & floats, node.name
        # Regions and factors of a Resize are no values.
        assert node.op_type == "Resize" or onnx.TensorProto.FLOAT not in map(constants.get, node.input), node.name


def test_weights_and_values_have_the_asked_types(quantized: Quantized) -> None:
    for scheme, weights, values in (
        ("w8a16", "int8", "uint16"),
        ("w8a8", "int8", "uint8"),
        ("w4a16", "int4", "uint16"),
    ):
        found = target.describe(quantized("vae_decoder", scheme))
        assert found.stored[weights] > 0.5 * sum(found.stored.values()) and found.stored[values]


@pytest.mark.parametrize("component", ["vae_decoder", "text_encoder"])
def test_no_two_values_share_a_name(component: str, quantized: Quantized) -> None:
    """onnxruntime's quantizer called copies of shared biases as other values are called."""
    graph = onnx.load(quantized(component, "w8a16")).graph
    names = Counter(name for node in graph.node for name in node.output)
    names.update(tensor.name for tensor in graph.initializer)
    assert names.most_common(1)[0][1] == 1


def test_masks_leave_room_for_the_scores(quantized: Quantized, subject: Callable[..., Any]) -> None:
    graph = onnx.load(quantized("text_encoder", "w8a16")).graph
    scales = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer if "scale" in tensor.name}
    masks = [name for name in scales if ".mask" in name]
    assert len(masks) == 2, "one for each layer"
    assert max(float(scales[name].max()) for name in masks) < 100 / 65535
    # What is masked has no influence all the same: other tokens behind the first change nothing of the first.
    given = subject("text_encoder").held_out
    other = {"input_ids": np.concatenate([given["input_ids"][:, :1], given["input_ids"][:, :0:-1]], 1)}
    runner = target.load(quantized("text_encoder", "w8a16"))
    first, second = (runner.run(inputs)["last_hidden_state"][:, 0] for inputs in (given, other))
    assert compare(first, second).snr_db > 40


def test_sixteen_bits_are_for_npus(subject: Callable[..., Any], tmp_path: Path) -> None:
    job = subject("vae_decoder").with_scheme(W8A16, tmp_path)
    with pytest.raises(ConversionError, match="int16_static is for phones' NPUs; name one with --npu"):
        target.lower(job)


class Normed(nn.Module):
    """Norms in both forms: an operator of its own with a scale, and a reciprocal of small values."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.LayerNorm(8)
        self.out = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.out(self.norm(self.conv(x).flatten(2).transpose(1, 2)))
        small = tokens * 0.05
        made: Tensor = small * (small.square().mean(1, keepdim=True) + 1e-5).sqrt().reciprocal()
        return made


@pytest.mark.slow
@pytest.mark.usefixtures("npu_simulator")
def test_the_npu_takes_norms_and_computes_what_onnxruntime_does(
    make: Callable[[LoweringJob, Path], Path], tmp_path: Path
) -> None:
    """As onnxruntime's tools leave it, the norm's scale is refused, and the reciprocal is many times too small."""
    torch.manual_seed(0)
    cases = tuple({"latent": torch.randn(1, 8, 8, 8).numpy()} for _ in range(4))
    surface = TensorSpec("latent", (1, 8, 8, 8), "float32"), TensorSpec("image", (1, 64, 8), "float32")
    module = Normed().eval()
    job = LoweringJob("vae_decoder", module, surface[:1], surface[1:], cases[0], W8A16, cases, tmp_path, npu=True)
    graph = make(job, tmp_path / "normed.onnx")
    soc, context = SOCS["snapdragon-8-gen3"], tmp_path / "npu" / "normed.onnx"
    found = compile_for_npu(graph, soc, context, NpuLimits(300.0))
    assert found.nodes and not found.refused, found.failure
    (made,) = execute_on_npu(graph, soc, context, cases[:1], NpuLimits(300.0)).outputs
    assert compare(made["image"], target.load(graph).run(cases[0])["image"]).snr_db > 40
    with torch.no_grad():
        assert compare(made["image"], module(torch.from_numpy(cases[0]["latent"])).numpy()).snr_db > 30
