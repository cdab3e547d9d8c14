"""Each rule fits what was planted for it and leaves its twin alone; what it says of a component is explained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from md_export.errors import ArtifactError, UsageError
from md_export.rewrites import REWRITES
from md_export.spec.scheme import QuantScheme
from md_export.spec.tensors import TensorSpec
from md_export.targets.contract import LoweringJob
from md_export.targets.lint.report import LintReport, OpAdvice
from md_export.targets.lint.rules import load_rules, rule_path

FLOAT, HALF = QuantScheme("float32", "float32"), QuantScheme("float16", "float16")
PALETTE = QuantScheme("palette4", "float32", "tensor")
SHAPE = (1, 4, 64, 64)


class Does(nn.Module):
    """A function as a module, so that the file names it."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Adds(nn.Module):
    """A constant matrix."""

    held: Tensor

    def __init__(self, value: float) -> None:
        super().__init__()
        self.register_buffer("held", torch.full((64, 64), value).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.held


def conv(**options: Any) -> nn.Module:
    return nn.Conv2d(4, 4, 3, **options)


def by_hand(x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred * torch.rsqrt((centred * centred).mean(-1, keepdim=True) + 1e-5)


# By rule: what it speaks against, and the same done well.
PLANTED: dict[str, tuple[nn.Module, nn.Module]] = {
    "rank": (Does(lambda x: x.reshape(1, 2, 2, 2, 32, 64) * 2), Does(lambda x: x.reshape(1, 2, 2, 64, 64) * 2)),
    "infinity": (Adds(float("-inf")), Adds(-1e4)),
    "beyond-float16": (Adds(-1e5), Adds(-6e4)),
    "vanishes": (Does(lambda x: torch.sqrt(x * x + 1e-8)), Does(lambda x: torch.sqrt(x * x + 1e-6))),
    "silu": (nn.SiLU(), nn.Sigmoid()),
    "last-axis-1": (Does(lambda x: x[..., :1] * 2), Does(lambda x: x[:, :, :1] * 2)),
    "last-axis-32": (Does(lambda x: x[..., :31] * 2), Does(lambda x: x[..., :32] * 2)),
    "last-axis-moves": (Does(lambda x: x.transpose(2, 3) * 2), Does(lambda x: x.transpose(1, 2) * 2)),
    "linear": (nn.Linear(64, 64), nn.Conv2d(4, 4, 1)),
    "norm-in-pieces": (Does(by_hand), nn.LayerNorm(64)),
    "heads-together": (nn.Softmax(-1), Does(lambda x: x[:, :1].softmax(-1))),
    "softmax-axis": (nn.Softmax(2), nn.Softmax(1)),
    "stride": (conv(stride=5), conv(stride=6)),
    "palette-stride": (conv(stride=3), conv(stride=2)),
    "dilation": (conv(dilation=4), conv(dilation=3)),
}
# Those that the shared assets have.
ELSEWHERE = {
    *("authored", "norm", "small-weights", "int8-values", "blocks"),
    *("float32", "float32-cast", "integers", "gather-rank", "dynamic"),
}


class All(nn.Module):
    """Every planted module on one input."""

    def __init__(self, which: int) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({name: pair[which] for name, pair in PLANTED.items()})

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(part(x) for part in self.parts.values())


def planted(coreai: Any, folder: Path, which: int) -> LintReport:
    torch.manual_seed(0)
    module, x = All(which).eval(), torch.randn(SHAPE)
    with torch.no_grad():
        made = module(x)
    outputs = tuple(TensorSpec(f"y{number}", tuple(value.shape), "float32") for number, value in enumerate(made))
    inputs = (TensorSpec("x", SHAPE, "float32"),)
    job = LoweringJob("part", module, inputs, outputs, {"x": x.numpy()}, PALETTE, (), folder)
    coreai.lower(job).quantize(job).save(folder / "x.aimodel")
    return found(coreai, folder / "x.aimodel")


def found(coreai: Any, path: Path, system: str | None = None) -> LintReport:
    report: LintReport = coreai.lint(path, system)
    return report


def those(report: LintReport, module: str) -> list[OpAdvice]:
    return [op for op in report.ops if op.module == module]


def rules_of(report: LintReport, module: str) -> set[str]:
    return {name for op in those(report, module) for name in op.rules}


@pytest.fixture(scope="module")
def reports(coreai: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[LintReport, ...]:
    return tuple(planted(coreai, tmp_path_factory.mktemp("planted"), which) for which in (0, 1))


@pytest.mark.parametrize("rule", PLANTED)
def test_a_rule_fits_what_was_planted_and_not_its_twin(rule: str, reports: tuple[LintReport, ...]) -> None:
    bad, good = (rules_of(report, f"parts.{rule}") for report in reports)
    assert rule in bad
    assert rule not in good


@pytest.mark.parametrize(
    ("resize", "faults"),
    [
        (lambda x: nn.functional.interpolate(x, scale_factor=2.0, mode="nearest"), ["nearest-resize"]),
        (lambda x: nn.functional.interpolate(x, scale_factor=2.0, mode="bilinear"), []),
        (lambda x: x.repeat_interleave(2, -1).repeat_interleave(2, -2), []),
    ],
)
def test_a_resize_that_goes_to_the_cpu(
    coreai: Any, tmp_path: Path, resize: Callable[[Tensor], Tensor], faults: list[str]
) -> None:
    x = torch.ones(1, 4, 8, 8)
    inputs, outputs = TensorSpec("x", (1, 4, 8, 8), "float32"), TensorSpec("y", (1, 4, 16, 16), "float32")
    job = LoweringJob("part", Does(resize), (inputs,), (outputs,), {"x": x.numpy()}, FLOAT, (), tmp_path)
    coreai.lower(job).quantize(job).save(tmp_path / "x.aimodel")
    known = found(coreai, tmp_path / "x.aimodel").known
    assert known is not None
    assert [item.fault.id for item in known.found] == faults
    # Slow is no reason to refuse an export.
    assert known.blocking("27.0") is None


def test_every_rule_is_tried_and_stands_on_a_page() -> None:
    rules = load_rules(rule_path("coreai")).rule
    assert {rule.id for rule in rules} == {*PLANTED, *ELSEWHERE, "asset-size"}
    assert len({rule.id for rule in rules}) == len(rules)
    for rule in rules:
        assert rule.source.startswith("https://") and rule.advice
        assert set(rule.helps) <= set(REWRITES), rule.id


def test_types_and_look_ups(asset: Callable[..., Path], coreai: Any) -> None:
    wide, half = (found(coreai, asset("small", scheme)) for scheme in (FLOAT, HALF))
    assert wide.count("likely") == 0
    assert {"float32"} < {rule.id for rule in wide.rules}
    assert {op.module for op in half.ops if op.verdict == "unlikely"} == {"words", ""}
    assert {"integers", "gather-rank"} <= rules_of(half, "words")
    assert "float32-cast" in rules_of(half, "") and "float32" not in rules_of(half, "")
    assert {"norm"} <= rules_of(half, "norm") & rules_of(half, "groups")
    assert "authored" in rules_of(half, "conv")
    # What is known before the program runs is none of its operations: a linear's weight is transposed.
    assert [op.kind for op in those(half, "square")] == ["broadcasting_batch_matmul", "broadcasting_add"]


def test_small_weights(asset: Callable[..., Path], coreai: Any) -> None:
    blocks, channels, int8 = (
        found(coreai, asset("small", scheme))
        for scheme in (
            QuantScheme("int4", "float32", "block", block_size=8),
            QuantScheme("int8", "float32"),
            QuantScheme("int8", "int8_static"),
        )
    )
    assert "blocks" in rules_of(blocks, "conv") and "blocks" not in rules_of(channels, "conv")
    assert "small-weights" in rules_of(channels, "conv")
    assert all(op.bytes == 0 for op in channels.ops if op.kind == "blockwise_shift_scale")
    assert "int8-values" in rules_of(int8, "conv") and "int8-values" not in rules_of(channels, "conv")


def test_bytes_are_padded_and_moves_are_counted(reports: tuple[LintReport, ...]) -> None:
    first, second = those(reports[0], "parts.last-axis-32"), those(reports[0], "parts.last-axis-moves")
    whole = 4 * 64 * 64 * 4
    assert [op.bytes for op in first] == [whole + 4 * 64 * 128, 2 * 4 * 64 * 128]
    assert [op.bytes for op in second] == [2 * whole, 2 * whole]
    assert reports[0].layout_bytes > sum(op.bytes for op in second if op.kind == "transpose") > 0


def test_flexible_shapes(coreai: Any, tmp_path: Path) -> None:
    """An asset of another tool."""
    from coreai_torch import TorchConverter, get_decomp_table

    shapes = ({2: torch.export.Dim("height", min=4, max=64)},)
    exported = torch.export.export(conv().eval(), (torch.randn(1, 4, 8, 8),), dynamic_shapes=shapes)
    program = TorchConverter().add_exported_program(exported.run_decompositions(get_decomp_table())).to_coreai()
    program.save_asset(tmp_path / "x.aimodel")
    report = found(coreai, tmp_path / "x.aimodel")
    assert "dynamic" in {rule.id for rule in report.rules}
    assert report.count("likely") == 0


def test_a_large_asset_is_remarked_on(asset: Callable[..., Path], coreai: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from md_export.targets.coreai.describe import read_facts

    path = asset("small", FLOAT)
    assert found(coreai, path).remarks == ()
    facts = replace(read_facts(path), weight_bytes=2_000_000_001)
    monkeypatch.setattr("md_export.targets.coreai.describe.read_facts", lambda _: facts)
    report = found(coreai, path)
    assert report.remarks == ("asset-size",)
    assert report.rule("asset-size").advice


def test_what_float16_leaves_to_others_is_explained(asset: Callable[..., Path], coreai: Any) -> None:
    """docs/lint.md lists them: the surface, the look-up of tokens, transformers' softmax."""
    report = found(coreai, asset("text_encoder", HALF))
    modules = {op.module for op in report.ops if op.verdict == "unlikely"}
    attention = {f"encoder.layers.{number}.self_attn" for number in range(2)}
    assert modules == {"", "embeddings.token_embedding", *attention}
    assert {op.kind for op in report.ops if op.module in attention and op.verdict == "unlikely"} == {
        *("cast", "broadcasting_add", "softmax"),
    }
    decoder = found(coreai, asset("vae_decoder", HALF))
    assert {(op.module, op.kind) for op in decoder.ops if op.verdict == "unlikely"} == {("", "cast")}
    # Of enlarging by 2 the pages say nothing.
    assert {op.kind for op in decoder.ops if op.verdict == "unknown"} == {"silu", "interpolate.nearest_neighbor"}


def test_systems_and_what_is_no_asset(asset: Callable[..., Path], coreai: Any, tmp_path: Path) -> None:
    assert found(coreai, asset("small", FLOAT), "iOS27").system == "iOS27"
    with pytest.raises(UsageError, match="loaded by iOS27 and later"):
        found(coreai, asset("small", FLOAT), "iOS26")
    (tmp_path / "y.aimodel").mkdir()
    with pytest.raises(ArtifactError, match=r"y\.aimodel is not a Core AI asset"):
        found(coreai, tmp_path / "y.aimodel")
