"""Apple's way of choosing bits by layer, as ``benchmarks/peer_methods.py`` reimplements it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from peer_methods import FLOAT16, cumulative_psnr, within

SIZES = {"loud": 6400, "quiet": 6400}


class Sum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.quiet, self.loud = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.loud(x) + 0.01 * self.quiet(x)
        return out


def test_layers_that_lose_least_come_first_and_the_weights_come_back() -> None:
    torch.manual_seed(0)
    module, x = Sum(), torch.randn(4, 8)
    layers: dict[str, nn.Module] = {"loud": module.loud, "quiet": module.quiet}
    wanted = module(x)
    small = {"loud": module.loud.weight.detach() * 0.9, "quiet": module.quiet.weight.detach() * 0.9}
    found = cumulative_psnr(layers, small, lambda: -float((module(x) - wanted).norm()))
    assert list(found) == ["quiet", "loud"]
    assert found["quiet"] > found["loud"]
    assert torch.equal(module(x), wanted)


def test_the_highest_threshold_that_fits() -> None:
    cumulative = {4: {"loud": 20.0, "quiet": 50.0}, 8: {"loud": 45.0, "quiet": 60.0}}
    whole = {"loud": FLOAT16, "quiet": FLOAT16}
    assert within(cumulative, SIZES, 2 * 2 * 6400) == whole
    tables = 2 * (2**4 + 2**8)
    assert within(cumulative, SIZES, 6400 + 3200 + tables) == {"loud": 8, "quiet": 4}
    assert within(cumulative, SIZES, 6400 + 3200 + tables - 1) == {"loud": 4, "quiet": 4}
    assert within(cumulative, SIZES, 0) == {"loud": 4, "quiet": 4}
