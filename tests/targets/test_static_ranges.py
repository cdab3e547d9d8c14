"""Every target with static int8 takes ranges from every observer, and clips what the observer clips."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from md_export.parity.metrics import snr_db
from md_export.spec.calibration import RangeRule
from md_export.spec.scheme import QuantScheme
from md_export.spec.tensors import Array, TensorSpec
from md_export.targets import TARGETS
from md_export.targets.contract import LoweringJob

WIDTH = 64
SHAPE = (1, WIDTH, 8, 8)
OUTLIER = 30.0
RULES = (RangeRule(), RangeRule("percentile", 99.9), RangeRule("mse"))


class Twice(nn.Module):
    """Two convolutions, so that one has an input of its own making."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(WIDTH, WIDTH, 1), nn.Conv2d(WIDTH, WIDTH, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.second(nn.functional.silu(self.first(x)))
        return out


def noise(seed: int, outlier: float = 0.0) -> Array:
    values = np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)
    if outlier:
        values[0, 0, 0, 0] = outlier
    return values


def job_in(workdir: Path) -> LoweringJob:
    """One outlier in the calibration inputs, so that their extremes waste nine tenths of the levels."""
    given, made = TensorSpec("x", SHAPE, "float32"), TensorSpec("y", SHAPE, "float32")
    calibration = tuple({"x": noise(seed, OUTLIER if seed == 1 else 0.0)} for seed in range(4))
    scheme = QuantScheme("int8", "int8_static")
    return LoweringJob("part", Twice().eval(), (given,), (made,), {"x": noise(9)}, scheme, calibration, workdir)


@pytest.mark.parametrize("target", TARGETS)
def test_an_observer_that_clips_an_outlier_wins_where_there_is_none(target: str, tmp_path: Path) -> None:
    opened, job = TARGETS[target].open(), job_in(tmp_path)
    lowered, found = opened.lower(job), dict[str, float]()
    with torch.no_grad():
        expected = job.module(torch.from_numpy(noise(9))).numpy()
    for rule in RULES:
        work = tmp_path / rule.observer
        work.mkdir()
        own = replace(job, workdir=work, ranges=rule)
        path = work / f"out{TARGETS[target].suffix}"
        # Core AI's programs are changed in place.
        model = opened.lower(own) if target == "coreai" else lowered
        model.quantize(own).save(path)
        found[rule.observer] = snr_db(opened.load(path).run({"x": noise(9)})["y"], expected)
    assert found["percentile"] > found["min_max"] + 6
    # One value in 65536 is worth a good part of the range to it: its square counts.
    assert found["mse"] > found["min_max"] + 0.2
    assert min(found.values()) > 10
