"""int8 activations: Apple's runtime computes what a pair says, ranges are those of the calibration inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from md_export.errors import ConversionError
from md_export.spec.scheme import QuantScheme, WeightRule
from md_export.spec.tensors import Array, TensorSpec
from md_export.targets.contract import LoweringJob
from md_export.targets.stored_graph import Step

W8A8 = QuantScheme("int8", "int8_static")
SHAPE = (1, 8, 6, 6)


class Padded(nn.Module):
    """A padded convolution whose answer two others share."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.left, self.right = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        made: Tensor = self.left(hidden) + self.right(hidden)
        return made


def noise(seed: int, scale: float = 1.0) -> Array:
    return (scale * np.random.default_rng(seed).normal(size=SHAPE)).astype(np.float32)


def exported(coreai: Any, folder: Path, scheme: QuantScheme = W8A8, calibration: int = 2) -> Path:
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    given, made = TensorSpec("x", SHAPE, "float32"), TensorSpec("y", SHAPE, "float32")
    cases = tuple({"x": noise(seed)} for seed in range(calibration))
    job = LoweringJob("part", Padded().eval(), (given,), (made,), {"x": noise(9)}, scheme, cases, folder)
    coreai.lower(job).quantize(job).save(folder / "x.aimodel")
    return folder / "x.aimodel"


@pytest.fixture(scope="module")
def padded(coreai: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(coreai, tmp_path_factory.mktemp("padded"))


def of_kind(coreai: Any, path: Path, kind: str) -> list[Step]:
    return [step for step in coreai.graph(path).steps if step.kind == kind]


def test_the_runtime_rounds_and_clips(padded: Path, coreai: Any) -> None:
    """Inputs three times as large as those of calibration: what lies outside becomes the range's end."""
    pairs = list(zip(of_kind(coreai, padded, "quantize"), of_kind(coreai, padded, "dequantize"), strict=True))
    names = [name for first, second in pairs for name in (first.inputs[0], first.outputs[0], second.outputs[0])]
    found = coreai.values(padded, {"x": noise(5, 3.0)}, names)
    for first, second in pairs:
        before, integers, after = (found[name] for name in (first.inputs[0], first.outputs[0], second.outputs[0]))
        assert second.inputs[0] == first.outputs[0]
        assert integers.min() >= -128 and integers.max() == 127
        scale = after.flat[np.argmax(integers)] / 127
        assert np.allclose(after, integers * scale, rtol=1e-6)
        expected = np.clip(np.rint(before / scale), -128, 127)
        # A quotient on a half may fall to either side.
        assert np.abs(integers - expected).max() <= 1
        assert (integers == expected).mean() > 0.99
    largest = max(float(np.abs(noise(seed)).max()) for seed in range(2))
    of_input = next(second for first, second in pairs if first.inputs[0] == "%input0")
    assert found[of_input.outputs[0]].max() == pytest.approx(largest)


def test_a_value_has_one_pair_in_front_of_the_padding_and_behind_the_bias(padded: Path, coreai: Any) -> None:
    made = {step.outputs[0]: step for step in coreai.graph(padded).steps}
    pairs = of_kind(coreai, padded, "quantize")
    # x; what the first gives, which both others take; what each of those gives.
    assert len(pairs) == len({step.inputs[0] for step in pairs}) == 4
    assert [made[step.inputs[0]].kind for step in pairs if step.inputs[0] in made] == ["broadcasting_add"] * 3
    pads = [step for step in made.values() if step.kind == "pad"]
    assert {made[step.inputs[0]].kind for step in pads} == {"dequantize"}
    assert {made[step.inputs[0]].kind for step in made.values() if step.kind == "conv2d"} == {"pad"}
    assert {step.modules for step in pairs} == {("first",), ("left",), ("right",)}


def test_activations_are_told_and_the_weights_are_still_proven(
    padded: Path, asset: Callable[..., Path], coreai: Any, tmp_path: Path
) -> None:
    found = coreai.describe(padded)
    assert (found.int8_inputs, found.int8_weights, found.ops["quantize"]) == (1.0, 3, 4)
    assert coreai.describe(asset("small", QuantScheme("int8", "float32"))).int8_inputs == 0
    rules = (WeightRule(("first",), "float32"),)
    part = coreai.describe(exported(coreai, tmp_path, replace(W8A8, keep_float=("left",), rules=rules)))
    assert part.int8_inputs == pytest.approx(1 / 3)
    assert set(part.float_weights) == {"first", "left"}
    assert {step.modules for step in of_kind(coreai, tmp_path / "x.aimodel", "quantize")} == {("right",)}
    small = coreai.describe(asset("small", W8A8))
    assert small.int8_inputs == 1, "linear layers too, but not the table of words"


def test_ranges_do_not_depend_on_how_many_values_are_held(
    padded: Path, coreai: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("md_export.targets.coreai.quantize._PORTION", 1)
    again = exported(coreai, tmp_path)
    assert (again / "main.mlirb").read_bytes() == (padded / "main.mlirb").read_bytes()


@pytest.mark.parametrize(
    ("scheme", "calibration", "message"),
    [
        (W8A8, 0, "int8_static needs calibration inputs"),
        (QuantScheme("int4", "int8_static"), 1, "has no weights/activations int4/int8_static"),
        (QuantScheme("float32", "int8_static"), 1, "has no weights/activations float32/int8_static"),
        (QuantScheme("int8", "int8_dynamic"), 1, "has no weights/activations int8/int8_dynamic"),
    ],
)
def test_what_it_cannot_make_is_said(
    scheme: QuantScheme, calibration: int, message: str, coreai: Any, tmp_path: Path
) -> None:
    with pytest.raises(ConversionError, match=message):
        exported(coreai, tmp_path, scheme, calibration)
