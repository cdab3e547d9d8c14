"""Lints of packages of ours and of others, and what the conditions of rules mean in them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from md_export.errors import ArtifactError, UsageError
from md_export.spec.scheme import QuantScheme
from md_export.spec.tensors import TensorSpec
from md_export.targets.contract import LoweringJob
from md_export.targets.coreml.lint import read_facts
from md_export.targets.coreml.package import KEY, MODEL, main_operations, read_modules, read_spec
from md_export.targets.coreml.target import CoremlTarget
from md_export.targets.lint.report import LintReport, OpAdvice
from md_export.targets.lint.rules import rules_of

coreml = CoremlTarget()
FP16 = QuantScheme("float16", "float16")
Package = Callable[..., Path]


def lowered(job: LoweringJob, path: Path) -> Path:
    coreml.lower(job).quantize(job).save(path)
    return path


def picture_job(module: nn.Module, out_shape: tuple[int, ...], workdir: Path) -> LoweringJob:
    given = TensorSpec("x", (1, 4, 64, 64), "float32")
    made = TensorSpec("y", out_shape, "float32")
    return LoweringJob("part", module.eval(), (given,), (made,), {"x": given.zeros()}, FP16, (), workdir)


def linted(module: nn.Module, out_shape: tuple[int, ...], tmp_path: Path) -> LintReport:
    return coreml.lint(lowered(picture_job(module, out_shape, tmp_path), tmp_path / "a.mlpackage"))


def the(report: LintReport, kind: str) -> OpAdvice:
    (op,) = [op for op in report.ops if op.kind == kind]
    return op


@pytest.mark.parametrize("scheme", ["fp16", "int8"])
@pytest.mark.parametrize("component", ["text_encoder", "unet", "vae_decoder"])
def test_every_operation_knows_its_module(
    package: Package, subject: Callable[..., Any], component: str, scheme: str
) -> None:
    path = package(component, scheme)
    modules = dict(subject(component).job.module.named_modules())
    found = read_modules(read_spec(path))
    assert set(found.values()) <= set(modules)
    # Only what the component's own forward does is nobody's: skip connections, the surface.
    assert sum(path == "" for path in found.values()) < 0.05 * len(found)
    assert len(read_spec(path).description.metadata.userDefined[KEY]) < 100_000


def test_modules_own_their_convolutions(package: Package) -> None:
    """Each convolution is attributed to the module whose weight it reads."""
    spec = read_spec(package("vae_decoder", "fp16"))
    found = read_modules(spec)
    convolutions = [op for op in main_operations(spec) if op.type == "conv"]
    assert convolutions
    for op in convolutions:
        weight = op.inputs["weight"].arguments[0].name
        owner = found[op.outputs[0].name]
        assert f"p_{owner.replace('.', '_')}_weight" == weight.removesuffix("_to_fp16")


def test_what_a_later_tool_inserts_inherits(package: Package) -> None:
    spec = read_spec(package("vae_decoder", "fp16"))
    before = read_modules(spec)
    for op in main_operations(spec):
        if op.type == "conv" and op.outputs[0].name.startswith("conv2d_cast"):
            op.outputs[0].name = "inserted"
    after = read_modules(spec)
    assert before["conv2d_cast_fp16"] == "post_quant_conv"
    assert after["inserted"] == before["latent_to_fp16"]


def test_a_package_of_another_tool(package: Package, tmp_path: Path) -> None:
    """No map, or a damaged one: operations speak by their own names, verdicts stay."""
    ours = coreml.lint(package("vae_decoder", "fp16"))
    for text in (None, "{", '{"a": 3}'):
        path = Path(shutil.copytree(package("vae_decoder", "fp16"), tmp_path / f"{text!r}.mlpackage"[1:]))
        spec = read_spec(path)
        del spec.description.metadata.userDefined[KEY]
        if text:
            spec.description.metadata.userDefined[KEY] = text
        (path / MODEL).write_bytes(spec.SerializeToString())
        theirs = coreml.lint(path)
        assert {op.module for op in theirs.ops} == {""}
        assert [op.verdict for op in theirs.ops] == [op.verdict for op in ours.ops]


def test_float32_is_unlikely_and_float16_likely(package: Package) -> None:
    wide, half = coreml.lint(package("vae_decoder", "fp32")), coreml.lint(package("vae_decoder", "fp16"))
    assert wide.count("likely") == 0
    assert half.count("likely") > 0.9 * len(half.ops)
    unlikely = [op for op in half.ops if op.verdict == "unlikely"]
    assert unlikely
    assert all({"float32", "float32-cast"} & set(op.rules) for op in unlikely)
    assert half.worst()[0].verdict == "unlikely"


class Strided(nn.Module):
    def __init__(self, stride: int = 1, padding: int = 0, dilation: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, stride, padding, dilation)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return out


@pytest.mark.parametrize(
    ("options", "size", "rule"),
    [({"stride": 5}, 13, "stride"), ({"dilation": 2}, 60, "dilation")],
)
def test_convolutions(tmp_path: Path, options: dict[str, int], size: int, rule: str) -> None:
    op = the(linted(Strided(**options), (1, 4, size, size), tmp_path), "conv")
    assert rule in op.rules
    assert op.module == "conv"
    assert op.verdict == ("unknown" if rule == "dilation" else "likely")


def test_plain_convolution_has_no_remark(tmp_path: Path) -> None:
    report = linted(Strided(stride=2, padding=1), (1, 4, 32, 32), tmp_path)
    assert the(report, "conv").rules == ("published",)
    assert report.layout_bytes == 0


class Moves(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 3) * 2.0


def test_layout_operations_are_counted(tmp_path: Path) -> None:
    report = linted(Moves(), (1, 64, 64, 4), tmp_path)
    assert "last-axis-moves" in the(report, "transpose").rules
    # 4·64 rows of 128 bytes read; 64·64 rows of 8 bytes, each padded to 64, written.
    assert report.layout_bytes == 4 * 64 * 128 + 64 * 64 * 64


class Keeps(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2) * 2.0


def test_a_transpose_that_keeps_the_last_axis(tmp_path: Path) -> None:
    assert "last-axis-moves" not in the(linted(Keeps(), (1, 64, 4, 64), tmp_path), "transpose").rules


class Masked(nn.Module):
    mask: Tensor

    def __init__(self, value: float) -> None:
        super().__init__()
        self.register_buffer("mask", torch.full((64, 64), value).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.mask).softmax(-1)


def test_infinite_and_finite_masks(tmp_path: Path) -> None:
    for value, named in ((float("-inf"), True), (-1e4, False)):
        path = tmp_path / f"{named}"
        path.mkdir()
        report = linted(Masked(value), (1, 4, 64, 64), path)
        assert ("infinity" in the(report, "add").rules) is named
        assert "softmax-axis" in the(report, "softmax").rules


def test_an_unknown_kind_is_unknown(tmp_path: Path) -> None:
    class Cumulates(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.cumsum(1)

    op = the(linted(Cumulates(), (1, 4, 64, 64), tmp_path), "cumsum")
    assert (op.verdict, op.rules) == ("unknown", ())


def test_systems(package: Package) -> None:
    path = package("vae_decoder", "int8")
    assert coreml.lint(path).system == "iOS17"
    assert coreml.lint(path, "iOS18").system == "iOS18"
    with pytest.raises(UsageError, match="does not load before iOS17"):
        coreml.lint(path, "iOS16")
    with pytest.raises(UsageError, match=f"use one of {', '.join(rules_of('coreml').systems)}"):
        coreml.lint(path, "iOS99")


class Wide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(64, 64, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return out


@pytest.mark.parametrize(
    ("scheme", "rules"),
    [
        (QuantScheme("int8", "float16"), {"int8-weights"}),
        (QuantScheme("int4", "float16", "block", block_size=16), {"int8-weights", "blocks"}),
        (QuantScheme("palette4", "float16", "tensor"), {"palette"}),
        (QuantScheme("float16", "float16", sparsity=0.5), {"sparse"}),
        (QuantScheme("int8", "int8_static"), {"int8-weights", "int8-activations"}),
    ],
    ids=["int8", "blocks", "palette", "sparse", "w8a8"],
)
def test_compressed_weights_and_their_modules(tmp_path: Path, scheme: QuantScheme, rules: set[str]) -> None:
    given = TensorSpec("x", (1, 64, 1, 64), "float32")
    inputs = {"x": np.random.default_rng(0).standard_normal(given.shape, dtype=np.float32)}
    made = replace(given, name="y")
    job = LoweringJob("part", Wide().eval(), (given,), (made,), inputs, scheme, (inputs,), tmp_path, "iOS18")
    report = coreml.lint(lowered(job, tmp_path / "a.mlpackage"))
    weights = [op for op in report.ops if op.kind.startswith("constexpr_")]
    assert {name for op in report.ops for name in op.rules} - {"published", "float32-cast"} == rules
    assert weights
    assert all(op.bytes == 0 for op in weights)
    assert {op.module for op in report.ops} == {"conv"}


def test_weights_of_a_gigabyte_are_remarked(package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    path = package("vae_decoder", "fp16")
    assert coreml.lint(path).remarks == ()
    facts = replace(read_facts(path), weight_bytes=1_000_000_001)
    monkeypatch.setattr("md_export.targets.coreml.lint.read_facts", lambda _: facts)
    report = coreml.lint(path)
    assert report.remarks == ("package-size",)
    assert report.rule("package-size").confidence == "documented"


def test_what_is_no_package(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no \.mlpackage"):
        coreml.lint(tmp_path)


def test_a_cut_specification(package: Package, tmp_path: Path) -> None:
    path = Path(shutil.copytree(package("vae_decoder", "fp16"), tmp_path / "cut.mlpackage"))
    (path / MODEL).write_bytes((path / MODEL).read_bytes()[:5000])
    with pytest.raises(ArtifactError, match="cannot be read"):
        coreml.lint(path)
