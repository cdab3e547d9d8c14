"""What float16 does to activations: figures against numpy, planted overflows, and what must not be called one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from md_export.spec.scheme import QuantScheme
from md_export.spec.tensors import Arrays, TensorSpec, WatchedRunner
from md_export.targets.contract import LoweringJob
from md_export.targets.coreml.hazard import measure
from md_export.targets.coreml.target import CoremlTarget
from md_export.targets.execution import execute
from md_export.targets.lint.report import Hazard

coreml = CoremlTarget()
SCHEMES = {"fp16": QuantScheme("float16", "float16"), "fp32": QuantScheme("float32", "float32")}
WIDTH = 64


class Chain(nn.Module):
    """Two linears; ``planted`` multiplies what the first computes, ``undone`` divides it again in the second."""

    def __init__(self, planted: float = 1.0, undone: bool = True, masked: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.masked = masked
        with torch.no_grad():
            self.first.weight.mul_(planted)
            self.first.bias.mul_(planted)
            self.second.weight.div_(planted if undone else 1.0)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        out: Tensor = self.second(torch.tanh(hidden) if self.masked else hidden)
        return out


def saved(module: nn.Module, folder: Path, scheme: str = "fp16") -> Path:
    given, made = TensorSpec("x", (1, WIDTH), "float32"), TensorSpec("y", (1, WIDTH), "float32")
    job = LoweringJob("part", module.eval(), (given,), (made,), {"x": given.zeros()}, SCHEMES[scheme], (), folder)
    path = folder / f"{scheme}.mlpackage"
    coreml.lower(job).quantize(job).save(path)
    return path


def batch(seed: int = 0, scale: float = 1.0) -> Arrays:
    return {"x": np.random.default_rng(seed).standard_normal((1, WIDTH), dtype=np.float32) * np.float32(scale)}


def watched(path: Path, *batches: Arrays) -> tuple[str, ...]:
    runner = coreml.load(path)
    assert isinstance(runner, WatchedRunner)
    for item in batches:
        runner.run(item)
    return runner.hazards()


def overflowing(path: Path, *batches: Arrays) -> list[Hazard]:
    hazards = coreml.lint(path, None, batches).hazards
    assert hazards is not None
    return [item for item in hazards if "overflow" in item.rules]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(Chain(2e5), tmp_path_factory.mktemp("planted"))


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(Chain(2e5, undone=False, masked=True), tmp_path_factory.mktemp("masked"))


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(Chain(), tmp_path_factory.mktemp("sound"))


def test_a_planted_overflow_is_found_and_named(planted: Path) -> None:
    (item,) = overflowing(planted, batch(0), batch(1))
    with torch.no_grad():
        module = Chain(2e5)
        expected = max(float(module.first(torch.from_numpy(batch(seed)["x"])).abs().max()) for seed in (0, 1))
    assert (item.module, item.kind) == ("first", "linear")
    assert item.largest == pytest.approx(expected, rel=1e-2)
    assert 0 < item.overflows < item.count == 2 * WIDTH


def test_the_runner_says_so_too(planted: Path) -> None:
    (line,) = watched(planted, batch(0), batch(1))
    (item,) = overflowing(planted, batch(0), batch(1))
    assert f"module first, linear {item.name}" in line
    assert f"{item.largest:.4g}" in line
    assert f"{item.overflows} values became infinite" in line


def test_an_overflow_that_no_output_shows(masked: Path) -> None:
    """tanh makes ±1 of infinities: the output is what torch computes, and only the values inside tell."""
    run = execute("coreml", masked, [batch()])
    with torch.no_grad():
        expected = Chain(2e5, undone=False, masked=True)(torch.from_numpy(batch()["x"])).numpy()
    assert np.abs(run.outputs[0]["y"].astype(np.float32) - expected).max() < 2e-3
    (line,) = run.hazards
    assert "module first, linear" in line


@pytest.mark.parametrize("scheme", ["fp16", "fp32"])
def test_a_sound_model_has_none(sound: Path, tmp_path: Path, scheme: str) -> None:
    path = sound if scheme == "fp16" else saved(Chain(), tmp_path, scheme)
    assert watched(path, batch(0), batch(1)) == ()
    assert overflowing(path, batch(0), batch(1)) == []


def test_float32_holds_what_float16_does_not(tmp_path: Path) -> None:
    path = saved(Chain(2e5), tmp_path, "fp32")
    assert watched(path, batch()) == ()
    assert measure(path, [batch()]) == ()


def test_an_infinity_that_is_meant_is_no_overflow(tmp_path: Path) -> None:
    class Quotient(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh((x + 1.0) / x)

    path = saved(Quotient(), tmp_path)
    zeros = {"x": np.zeros((1, WIDTH), np.float32)}
    assert np.array_equal(coreml.load(path).run(zeros)["y"], np.ones((1, WIDTH), np.float32))
    assert watched(path, zeros) == ()
    assert sum(item.not_finite for item in measure(path, [zeros])) == WIDTH


def test_broken_inputs_are_not_the_artifacts_fault(sound: Path) -> None:
    for value in (np.inf, np.nan):
        assert watched(sound, {"x": np.full((1, WIDTH), value, np.float32)}) == ()


def test_inputs_beyond_float16(sound: Path) -> None:
    """The cast of an input is the first operation that can overflow."""
    (line, *_) = watched(sound, {"x": np.full((1, WIDTH), 1e6, np.float32)})
    assert "cast x_to_fp16" in line


def test_figures_agree_with_numpy(sound: Path) -> None:
    """Of the input's cast: float16 as numpy rounds it, near every limit."""
    limits = [65504.0, 65519.0, 65520.0, 2.0**-14, 2.0**-24, 2.0**-25, 2.0**-26, 1e-3, 0.0]
    near = [scale * value for value in limits for scale in (0.999, 1.0, 1.001, -1.0)]
    values = np.resize(np.asarray(near, np.float32), (1, WIDTH))
    (item,) = [item for item in measure(sound, [{"x": values}]) if item.name == "x_to_fp16"]
    with np.errstate(over="ignore", under="ignore"):
        half = values.astype(np.float16)
    assert item.overflows == int(np.isinf(half).sum())
    assert item.flushed == int(((half == 0) & (values != 0)).sum())
    assert item.subnormal == int(((np.abs(values) < 2.0**-14) & (half != 0)).sum())
    assert item.largest == float(np.abs(values).max())
    assert item.smallest == float(np.abs(values[values != 0]).min())


def test_large_and_small_values_get_notes(sound: Path) -> None:
    for scale, rule in ((3e3, "large"), (1e-6, "small")):
        report = coreml.lint(sound, None, [batch(scale=scale)])
        (item,) = [item for item in report.hazards or () if item.name == "x_to_fp16"]
        assert item.rules == (rule,)
        assert next(found for found in report.hazard_rules if found.id == rule).grade == "note"
