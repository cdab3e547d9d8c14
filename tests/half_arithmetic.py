"""Float16 arithmetic, one rounding after another, as a GPU may carry it out: against which bounds are held."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from md_export.targets.tflite.half.activations import OpValues

Half = NDArray[np.float16]
Real = NDArray[np.float64]


def in_float16(left: Half, right: Half) -> Half:
    """``[..., n]`` each → their products added one after another, every product and sum rounded: ``[...]``."""
    total: Half = left[..., 0] * right[..., 0]
    for place in range(1, left.shape[-1]):
        total = total + left[..., place] * right[..., place]
    return total


def in_blocks(left: Half, right: Half) -> Half:
    """Products added in float16 by fours, those sums in float32; the result rounded to float16."""
    short = -left.shape[-1] % 4
    pairs = [np.pad(part, [(0, 0)] * (part.ndim - 1) + [(0, short)]) for part in (left, right)]
    blocks = [part.reshape(*part.shape[:-1], -1, 4) for part in pairs]
    total: Half = in_float16(*blocks).astype(np.float32).sum(-1, dtype=np.float32).astype(np.float16)
    return total


def mean_in_float16(x: Half) -> Half:
    """``[..., n]`` → the sum, one after another, over n."""
    total: Half = x[..., 0]
    for place in range(1, x.shape[-1]):
        total = total + x[..., place]
    mean: Half = total / np.float16(x.shape[-1])
    return mean


def patches(values: OpValues, stride: int, padding: tuple[int, int, int, int]) -> tuple[Half, Half]:
    """A convolution as products: both factors ``[pixels, channels out, terms]``, the bias and a 1 among them."""
    x = torch.from_numpy(values.read(0).astype(np.float32)).permute(0, 3, 1, 2)
    weight = torch.from_numpy(values.read(1).astype(np.float32)).permute(0, 3, 1, 2)
    columns = F.unfold(F.pad(x, padding), weight.shape[2:], stride=stride)[0].T
    left = torch.cat([columns, torch.ones(len(columns), 1)], 1).numpy().astype(np.float16)
    bias = torch.from_numpy(values.read(2).astype(np.float32))
    right = torch.cat([weight.flatten(1), bias[:, None]], 1).numpy().astype(np.float16)
    both = np.broadcast_arrays(left[:, None], right[None])
    return both[0], both[1]


Arithmetic = Callable[[Half, Half], Half]
