"""Operations that the NPU's compiler would fuse into something else, kept apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from md_export.parity.metrics import compare
from md_export.spec.names import SOCS
from md_export.spec.recipe import QuantScheme
from md_export.spec.tensors import TensorSpec
from md_export.targets import TARGETS
from md_export.targets.contract import LoweringJob
from md_export.targets.onnx.npu import qdq
from md_export.targets.onnx.npu.process import NpuLimits, compile_for_npu, execute_on_npu

target = TARGETS["onnx"].open()
SOC, LIMITS = SOCS["snapdragon-8-elite"], NpuLimits(300.0)
SHAPE = (1, 80, 4, 4)


class BiasedSwish(nn.Module):
    """An addition for each channel, then swish: the end of a norm, on a map of 16 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(80, 1, 1) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x + self.bias)


class Normed(nn.Module):
    """A GroupNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, 80)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.norm(x)
        return made


def job_of(module: nn.Module, folder: Path) -> LoweringJob:
    torch.manual_seed(0)
    cases = tuple({"latent": torch.randn(SHAPE).numpy()} for _ in range(4))
    surface = TensorSpec("latent", SHAPE, "float32"), TensorSpec("image", SHAPE, "float32")
    scheme = QuantScheme("int8", "int16_static")
    return LoweringJob(
        "vae_decoder", module.eval(), surface[:1], surface[1:], cases[0], scheme, cases, folder, npu=True
    )


@pytest.mark.parametrize(("module", "ones"), [(BiasedSwish(), 1), (Normed(), 1)])
def test_a_multiplication_by_one_stands_between(
    module: nn.Module, ones: int, make: Callable[[LoweringJob, Path], Path], tmp_path: Path
) -> None:
    graph = onnx.load(make(job_of(module, tmp_path), tmp_path / "apart.onnx")).graph
    assert sum(node.op_type == "Mul" and node.name.endswith(".value") for node in graph.node) == ones


def on_npu(make: Callable[[LoweringJob, Path], Path], folder: Path) -> float:
    """Decibels of what the simulator makes of :class:`BiasedSwish`, against onnxruntime on the CPU."""
    folder.mkdir()
    job = job_of(BiasedSwish(), folder)
    graph, context = make(job, folder / "swish.onnx"), folder / "npu" / "swish.onnx"
    found = compile_for_npu(graph, SOC, context, LIMITS)
    assert found.nodes and not found.refused, found.failure
    (made,) = execute_on_npu(graph, SOC, context, job.calibration[1:2], LIMITS).outputs
    wanted = target.load(graph).run(job.calibration[1])
    assert np.isfinite(made["image"]).all()
    return compare(made["image"], wanted["image"]).snr_db


@pytest.mark.slow
@pytest.mark.usefixtures("npu_simulator")
def test_swish_is_right_on_the_npu_and_would_not_be(
    make: Callable[[LoweringJob, Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the second half fails, the compiler has been mended: ``keep_apart`` can go for it and newer ones."""
    assert on_npu(make, tmp_path / "apart") > 40
    monkeypatch.setattr(qdq, "keep_apart", lambda _: None)
    assert on_npu(make, tmp_path / "together") < 10
