"""What is hidden from an in-painting model: rectangles of a picture, and the latent cells that they touch."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from training.drawing import CENTRES, SIDE
from training.latents import PATCH

#: Half the side of the square that holds an object of medium size with its shadow.
REACH = 16


def rectangle(left: int, top: int, right: int, bottom: int) -> Tensor:
    """1 inside, 0 outside: [1, 64, 64]; right and bottom are the first outside."""
    mask = torch.zeros(1, SIDE, SIDE)
    mask[:, top:bottom, left:right] = 1
    return mask


def hiding(place: str, margins: tuple[int, int] = (0, 0)) -> Tensor:
    """The square around an object at ``place``, enlarged by margins in x and y away from the other object's place."""
    x, y = (int(value) for value in CENTRES[place])
    wide, high = margins
    return rectangle(
        max(0, x - REACH - (wide if place not in ("right",) else 0)),
        max(0, y - REACH - (high if place not in ("bottom",) else 0)),
        min(SIDE, x + REACH + (wide if place not in ("left",) else 0)),
        min(SIDE, y + REACH + (high if place not in ("top",) else 0)),
    )


def hidden_rectangles(rng: np.random.Generator, count: int) -> Tensor:
    """Masks [count, 1, 64, 64]: nothing for every third, else a random rectangle or all."""
    masks = []
    for _ in range(count):
        kind = rng.random()
        if kind < 1 / 3:
            masks.append(torch.zeros(1, SIDE, SIDE))
        elif kind < 0.4:
            masks.append(torch.ones(1, SIDE, SIDE))
        else:
            x, y = np.sort(rng.integers(0, SIDE + 1, (2, 2)), axis=1)
            masks.append(rectangle(x[0], y[0], x[1], y[1]))
    return torch.stack(masks)


def touched(masks: Tensor) -> Tensor:
    """Pixels [N, 1, 64, 64] → latent cells [N, 1, 8, 8]; a cell is repainted where any of its pixels is."""
    return F.max_pool2d(masks, PATCH)
