"""Run a module of a few ops through a whole target: lower it, save it, execute it, and compare it with torch."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final, cast

import numpy as np
import torch
from torch import Tensor, nn

from md_export.parity.metrics import compare, first_fault
from md_export.spec.scheme import QuantScheme
from md_export.spec.tensors import Array, TensorSpec
from md_export.targets import TARGETS
from md_export.targets.contract import Target
from md_export.targets.execution import answer_of

# Both sides compute in float32: a different order of sums costs a few units in the last place, about 130 dB.
LEAST_SNR_DB: Final = 90.0
_INPUT: Final = TensorSpec("sample", (1, 4, 8, 8), "float32")
_OUTPUT: Final = TensorSpec("out", (1, 64, 8), "float32")


class Canary(nn.Module):
    """Network of the layers that every component has: convolution, GroupNorm, attention, GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, padding=1)
        self.norm = nn.GroupNorm(4, 8)
        self.to_q, self.to_k, self.to_v = (nn.Linear(8, 8) for _ in range(3))
        self.out = nn.Linear(8, 8)

    def forward(self, sample: Tensor) -> Tensor:
        """``[1, 4, 8, 8]`` → ``[1, 64, 8]``, float32."""
        tokens = self.norm(self.conv(sample)).flatten(2).transpose(1, 2)
        scores = self.to_q(tokens) @ self.to_k(tokens).transpose(1, 2) / 8**0.5
        tokens = tokens + scores.softmax(-1) @ self.to_v(tokens)
        return cast(Tensor, self.out(nn.functional.gelu(tokens)))


@dataclass(frozen=True)
class Flight:
    """Result of a canary: ``snr_db`` against torch; ``fault``: why there is no SNR; ``seconds``: total wall time."""

    snr_db: float | None
    fault: str
    seconds: float


def fly(target: Target, suffix: str) -> Flight:
    """Convert and run the canary.

    Raises:
        MdExportError: the target failed.
    """
    started = time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = Canary().eval().requires_grad_(False)
        sample = torch.randn(_INPUT.shape)
    wanted, given = module(sample).numpy(), {_INPUT.name: sample.numpy()}
    made = answer_of(target, suffix, module, given, _OUTPUT, QuantScheme("float32", "float32"))
    return _judged(made, wanted, time.perf_counter() - started)


def _judged(made: Array, wanted: Array, seconds: float) -> Flight:
    fault = first_fault(np.asarray(made), wanted)
    if fault:
        return Flight(None, str(fault), round(seconds, 1))
    return Flight(compare(made, wanted).snr_db, "", round(seconds, 1))


def fly_named(name: str) -> Flight:
    """Convert and run the canary of the named target."""
    return fly(TARGETS[name].open(), TARGETS[name].suffix)
