"""fold_x0 in a float16 program: the sum a·x_T + b·output stays float32, and what that is worth."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from md_export import mil
from md_export.parity.metrics import compare
from md_export.rewrites.fold_x0 import X0Combine, fold_x0
from md_export.spec.sampler import OneStep
from md_export.spec.scheme import QuantScheme
from md_export.spec.tensors import TensorSpec
from md_export.targets.contract import LoweringJob
from md_export.targets.coreml import lower as precision
from md_export.targets.coreml.lower import lower
from md_export.targets.coreml.package import main_operations, read_spec

# A checkpoint that predicts noise, with Stable Diffusion's schedule and scaling factor.
EPSILON = OneStep(999, 14.64881, -14.61464, 0.18215, "epsilon")
FLOAT16 = QuantScheme("float16", "float16")
LATENT = TensorSpec("latent", (1, 8, 8, 8), "float32")


class Denoiser(nn.Module):
    """One convolution whose output float16 holds exactly, so that nothing but the sum can lose anything."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_out = nn.Conv2d(8, 8, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        self.conv_out.bias = nn.Parameter(torch.arange(-4, 4) / 8.0)
        self.x0 = X0Combine(EPSILON)

    def forward(self, sample: Tensor) -> Tensor:
        out: Tensor = self.x0(sample, self.conv_out(sample))
        return out


def job_of(module: nn.Module, inputs: tuple[TensorSpec, ...], example: Any, workdir: Path) -> LoweringJob:
    return LoweringJob("unet", module.eval(), inputs, (LATENT,), example, FLOAT16, (), workdir)


@pytest.fixture
def small(tmp_path: Path) -> LoweringJob:
    sample = torch.randn(LATENT.shape, generator=torch.Generator().manual_seed(0)).numpy()
    return job_of(Denoiser(), (replace(LATENT, name="sample"),), {"sample": sample}, tmp_path)


def snr_db(job: LoweringJob) -> float:
    with torch.no_grad():
        wanted = job.module(*(torch.from_numpy(job.example[spec.name]) for spec in job.inputs)).numpy()
    job.workdir.mkdir(exist_ok=True)
    (out,) = mil.load(lower(job).package).predict(dict(job.example)).values()
    return compare(out, wanted).snr_db


def in_half(job: LoweringJob, monkeypatch: pytest.MonkeyPatch) -> float:
    """The figure with the sum in float16: what the selection is for."""
    with monkeypatch.context() as patch:
        patch.setattr(precision, "_last_sum", lambda _block: set())
        return snr_db(replace(job, workdir=job.workdir / "half"))


def test_the_sum_costs_nothing(small: LoweringJob, monkeypatch: pytest.MonkeyPatch) -> None:
    assert snr_db(small) >= 130
    assert in_half(small, monkeypatch) < 80


def test_the_last_convolution_keeps_its_weight(small: LoweringJob) -> None:
    """b multiplied into it would be a new constant, which keep_float and attribution could not find."""
    lowered = lower(small)
    operations = [op for op in main_operations(read_spec(lowered.package)) if op.type != "const"]
    (conv,) = (op for op in operations if op.type == "conv")
    weight = conv.inputs["weight"].arguments[0].name.removesuffix("_to_fp16")
    assert lowered.modules[weight] == "conv_out"


def test_a_residual_inside_is_no_last_sum(small: LoweringJob) -> None:
    """Only what an input of the program and its output have between them stays float32."""
    module = nn.Sequential(nn.Conv2d(8, 8, 1), nn.Hardtanh(-9.0, 9.0))
    package = lower(replace(small, module=module.eval())).package
    floats = [op.type for op in main_operations(read_spec(package)) if op.type != "const" and stored(op) == "FLOAT32"]
    assert floats == ["cast"]


def stored(op: Any) -> str:
    from md_export.targets.coreml.vendor import ct

    return str(ct.proto.MIL_pb2.DataType.Name(op.outputs[0].type.tensorType.dataType))


@pytest.mark.slow
def test_a_whole_unet_gains(subject: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Less than the small graph, since the UNet's own rounding comes first: 2.5 dB with these random weights."""
    case = subject("unet").job
    module = copy.deepcopy(case.module)
    assert fold_x0(module, EPSILON) == 1
    job = job_of(module, case.inputs, case.example, tmp_path)
    assert snr_db(job) >= in_half(job, monkeypatch) + 1
