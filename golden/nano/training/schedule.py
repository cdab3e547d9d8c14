"""What both trainings share: the learning rate's course and the weights' moving average."""

from __future__ import annotations

import math

import torch
from torch import nn


def cosine(part: float, warm_up: float) -> float:
    """Factor on the learning rate: linear up over `warm_up`, then a cosine down to 1 % at part = 1."""
    if part < warm_up:
        return part / warm_up
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, (part - warm_up) / (1 - warm_up))))


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, keep: float) -> None:
    """average <- keep * average + (1 - keep) * model, for every parameter."""
    for mean, value in zip(average.parameters(), model.parameters(), strict=True):
        mean.lerp_(value, 1 - keep)
