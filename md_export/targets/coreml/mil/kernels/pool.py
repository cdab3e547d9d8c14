"""Pooling over one to three spatial axes."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from md_export.targets.coreml.mil.bind import Ints, Tensor
from md_export.targets.coreml.mil.kernels.padding import window_pads

Pads = list[tuple[int, int]]


def _ceil_extension(sizes: list[int], kernel: Ints, strides: Ints, pads: Pads) -> list[int]:
    """Elements to add at the end of every axis so that a last, incomplete window counts (torch's ceil_mode)."""
    extra = []
    for size, k, s, (before, after) in zip(sizes, kernel, strides, pads, strict=True):
        total = size + before + after
        count = -(-(total - k) // s) + 1
        if (count - 1) * s >= size + before and before + after > 0:
            count -= 1
        extra.append(max(0, (count - 1) * s + k - total))
    return extra


def _flat(pads: Pads) -> list[int]:
    return [amount for pair in reversed(pads) for amount in pair]


def _frame(
    x: Tensor, kernel_sizes: Ints, strides: Ints | None, pad_type: str, pad: Ints | None, ceil_mode: bool
) -> tuple[Ints, Pads, Pads]:
    """Strides, declared padding and the extension of ceil_mode."""
    strides = strides or (1,) * len(kernel_sizes)
    pads = window_pads(pad_type, x.shape[2:], kernel_sizes, strides, (1,) * len(kernel_sizes), pad)
    extra = _ceil_extension(list(x.shape[2:]), kernel_sizes, strides, pads) if ceil_mode else [0] * len(pads)
    return strides, pads, [(0, amount) for amount in extra]


def _sum(x: Tensor, kernel: Ints, strides: Ints) -> Tensor:
    if x.dim() == 3:
        return _sum(x[:, :, None], (1, *kernel), (1, *strides))[:, :, 0]
    pool = F.avg_pool2d if x.dim() == 4 else F.avg_pool3d
    return pool(x, kernel, strides, divisor_override=1)


def avg_pool(
    x: Tensor,
    kernel_sizes: Ints,
    strides: Ints | None = None,
    pad_type: str = "valid",
    pad: Ints | None = None,
    exclude_padding_from_average: bool = False,
    ceil_mode: bool = False,
) -> Tensor:
    """Mean of every window; zeros of the padding count unless excluded, those of ceil_mode never do."""
    strides, pads, extra = _frame(x, kernel_sizes, strides, pad_type, pad, ceil_mode)
    padded = F.pad(F.pad(x, _flat(pads)), _flat(extra))
    ones = torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype)
    counted = F.pad(F.pad(ones, _flat(pads), value=0.0 if exclude_padding_from_average else 1.0), _flat(extra))
    return _sum(padded, kernel_sizes, strides) / _sum(counted, kernel_sizes, strides)


def l2_pool(
    x: Tensor,
    kernel_sizes: Ints,
    strides: Ints | None = None,
    pad_type: str = "valid",
    pad: Ints | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    """Root of the sum of squares of every window."""
    strides, pads, extra = _frame(x, kernel_sizes, strides, pad_type, pad, ceil_mode)
    return torch.sqrt(_sum(F.pad(F.pad(x * x, _flat(pads)), _flat(extra)), kernel_sizes, strides))


def max_pool(
    x: Tensor,
    kernel_sizes: Ints,
    strides: Ints | None = None,
    pad_type: str = "valid",
    pad: Ints | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    """Largest element of every window; padding never wins."""
    strides, pads, extra = _frame(x, kernel_sizes, strides, pad_type, pad, ceil_mode)
    joined = [(before, after + more) for (before, after), (_, more) in zip(pads, extra, strict=True)]
    padded = F.pad(x, _flat(joined), value=float("-inf"))
    pool = {3: F.max_pool1d, 4: F.max_pool2d, 5: F.max_pool3d}[x.dim()]
    return pool(padded, kernel_sizes, strides)
