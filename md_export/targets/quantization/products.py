"""Layers as products of a matrix and their inputs: what rounding needs to know of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from md_export.rewrites.split_wide_conv2d import SplitConv2d
from md_export.rewrites.upsample_to_four_convs import FourConv2d

# Positions of a map that count for each input: every so many-th row and column, where it has more.
_MOST_POSITIONS: Final = 16384
# What these compute with is not their weight as it is.
_DERIVED: Final = (FourConv2d, SplitConv2d)


def products(module: nn.Module) -> Iterator[tuple[str, nn.Conv2d | nn.Linear]]:
    """Layers that multiply their input with a weight, by module path."""
    for path, layer in module.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear) and not is_derived(layer):
            yield path, layer


def is_derived(layer: nn.Module) -> bool:
    """Whether what a layer computes with, and a target stores, is made of its weight; rounded to nearest then."""
    return isinstance(layer, _DERIVED)


def as_matrices(layer: nn.Module, values: Tensor) -> Tensor:
    """Something of the weight's shape, ``[out, in, *kernel]`` → ``[groups, out / groups, n]``."""
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    return values.reshape(groups, values.shape[0] // groups, -1)


def columns(layer: nn.Conv2d | nn.Linear, x: Tensor) -> Tensor:
    """A layer's input → ``[groups, n, positions]``, what each group's matrix multiplies."""
    if isinstance(layer, nn.Linear):
        return x.reshape(1, -1, layer.in_features).transpose(1, 2)
    # A layer for a vector may take [B, C].
    maps = x if x.ndim == 4 else x[..., None, None]
    padding: Any = layer.padding
    step = max(1, math.ceil(math.sqrt(maps.shape[2] * maps.shape[3] / _MOST_POSITIONS)))
    stride = tuple(step * size for size in layer.stride)
    unfolded = F.unfold(maps, layer.kernel_size, layer.dilation, padding, stride)
    batch, _, positions = unfolded.shape
    split = unfolded.reshape(batch, layer.groups, -1, positions)
    return split.permute(1, 2, 0, 3).reshape(layer.groups, -1, batch * positions)


class InputSums:
    """Sums over all inputs of one layer, taken while the hook is in place.

    Attributes:
        hessian: ``[groups, n, n]``, float64: sum of x·xᵀ.
        total: ``[groups, n]``, float64: sum of x.
        count: number of x.
    """

    def __init__(self, layer: nn.Conv2d | nn.Linear) -> None:
        groups, _, size = as_matrices(layer, layer.weight).shape
        self.hessian = torch.zeros(groups, size, size, dtype=torch.float64)
        self.total = torch.zeros(groups, size, dtype=torch.float64)
        self.count = 0
        self._handle = layer.register_forward_pre_hook(self._add)

    def _add(self, layer: Any, given: tuple[Tensor, ...]) -> None:
        x = columns(layer, given[0])
        self.hessian += torch.bmm(x, x.transpose(1, 2)).double()
        self.total += x.sum(dim=-1).double()
        self.count += x.shape[-1]

    @property
    def mean(self) -> Tensor:
        """``[groups, n]``, float64."""
        return self.total / max(1, self.count)

    def close(self) -> None:
        """Take the hook away."""
        self._handle.remove()
