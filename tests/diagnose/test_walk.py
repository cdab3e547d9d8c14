"""The walk through a module on an artifact's values, on graphs made by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from md_export.diagnose.attribution.blame import Located, Search
from md_export.diagnose.attribution.walk import Walker, arrangements, outputs_by_module
from md_export.parity.metrics import EXACT_DB
from md_export.targets.stored_graph import Step

LEAST = 40.0


class Block(nn.Module):
    """conv → relu (merged by many converters) → conv, and a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 6, 1)
        self.act = nn.ReLU()
        self.second = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.second(self.act(self.first(x)))
        return out


# As a converter writes it that merges the activation into the convolution before it, channels last.
MERGED = (
    Step("conv", ("first",), ("x", "w1"), ("merged",)),
    Step("conv", ("second",), ("merged", "w2"), ("b",)),
    Step("add", ("",), ("x", "b"), ("out",)),
)
PLAIN = (
    Step("conv", ("first",), ("x", "w1"), ("a",)),
    Step("relu", ("act",), ("a",), ("merged",)),
    *MERGED[1:],
)


@pytest.fixture
def block() -> tuple[Block, Tensor]:
    torch.manual_seed(0)
    return Block().eval().requires_grad_(False), torch.randn(1, 4, 3, 5)


def computed(block: Block, x: Tensor, wrong: str = "") -> dict[str, NDArray[np.float32]]:
    """What an artifact computes, channels last; the weight of ``wrong`` has its sign changed."""

    def conv(name: str, value: Tensor) -> Tensor:
        layer: nn.Conv2d = getattr(block, name)
        return nn.functional.conv2d(value, -layer.weight if name == wrong else layer.weight, layer.bias)

    a = conv("first", x)
    merged = a.relu()
    b = conv("second", merged)
    values = {"a": a, "merged": merged, "b": b, "out": x + b}
    return {name: value.permute(0, 2, 3, 1).contiguous().numpy() for name, value in values.items()}


def located(block: Block, x: Tensor, steps: tuple[Step, ...], values: dict[str, NDArray[np.float32]]) -> Located:
    return Search(Walker(block, (x,)), steps, values, LEAST).locate()


def test_a_right_artifact_is_seen_whole(block: tuple[Block, Tensor]) -> None:
    found = located(*block, PLAIN, computed(*block))
    assert list(found.seen) == ["first", "act", "second", ""]
    assert found.first is None
    assert min(seen.local_snr_db for seen in found.seen.values()) > 100


@pytest.mark.parametrize("wrong", ["first", "second"])
def test_a_wrong_weight_is_local_to_its_module(block: tuple[Block, Tensor], wrong: str) -> None:
    found = located(*block, PLAIN, computed(*block, wrong))
    assert found.first == wrong
    assert [path for path, seen in found.seen.items() if seen.local_snr_db < LEAST] == [wrong]
    assert found.seen[""].cumulative_snr_db < LEAST


def test_a_merged_activation_is_no_fault(block: tuple[Block, Tensor]) -> None:
    found = located(*block, MERGED, computed(*block))
    assert found.first is None
    assert "first" not in found.seen


@pytest.mark.parametrize("wrong", ["first", "second"])
def test_a_fault_in_or_beside_what_was_merged(block: tuple[Block, Tensor], wrong: str) -> None:
    found = located(*block, MERGED, computed(*block, wrong))
    assert found.first == wrong


def test_a_nan_is_blamed_where_it_begins(block: tuple[Block, Tensor]) -> None:
    values = computed(*block)
    for name in ("b", "out"):
        values[name][0, 0, 0, 0] = np.nan
    found = located(*block, PLAIN, values)
    assert found.first == "second"
    assert found.seen["second"].local_snr_db == -EXACT_DB
    assert found.seen["first"].local_snr_db > 100


def test_a_small_error_that_alone_breaks_the_component(block: tuple[Block, Tensor]) -> None:
    """20 dB is no scrambled weight, but more than the component may lose."""
    values = computed(*block)
    noise = np.random.default_rng(0).standard_normal(values["b"].shape).astype(np.float32)
    noise *= np.float32(0.1) * values["b"].std()
    values["out"] = values["out"] + noise
    values["b"] = values["b"] + noise
    found = located(*block, PLAIN, values)
    assert found.first == "second"
    assert found.alone["second"] < LEAST


def test_what_a_module_gives_is_what_others_read() -> None:
    steps = (
        Step("conv", ("a.conv",), ("x",), ("1",)),
        Step("mul", ("a",), ("1",), ("2",)),
        Step("add", ("a",), ("2", "1"), ("3",)),
        Step("neg", ("",), ("3",), ("out",)),
        Step("constant", (), (), ("unread",)),
    )
    found = outputs_by_module(steps, ["", "a", "a.conv", "unknown"])
    assert found == {"": ("out", "unread"), "a": ("3",), "a.conv": ("1",)}


@pytest.mark.parametrize("shape", [(1, 2, 3, 4), (1, 2, 1, 12), (1, 2, 12)])
def test_channels_last_is_understood(shape: tuple[int, ...]) -> None:
    wanted = torch.arange(24.0).reshape(shape)
    last = wanted.movedim(1, -1).contiguous()
    assert any(torch.equal(way.value, wanted) for way in arrangements(last, shape))
    assert not arrangements(last[..., :1], shape)
