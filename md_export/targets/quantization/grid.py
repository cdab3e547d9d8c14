"""Integers times scales: the grid that reaches a weight's largest values, or one that is a little finer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

# Below half of the largest value a finer grid clips too much: no weight of the nano checkpoint chose less.
_SHRINKS: Final = torch.linspace(1.0, 0.5, 26)


@dataclass(frozen=True)
class Grid:
    """The levels that each element of a weight may take.

    Attributes:
        scales: ``[G]``, positive.
        members: ``[*weight]``, int64: the group of each element.
        anchors: ``[*weight]``, bool: one element of each group, the largest. It stays at the largest level whatever
            happens, so that the target's own rounding finds the same scale.
        levels: the largest integer.
    """

    scales: Tensor
    members: Tensor
    anchors: Tensor
    levels: int

    def nearest(self, values: Tensor, part: slice = slice(None)) -> Tensor:
        """``values`` on the grid; ``part`` of the last axis is what they are."""
        scales, anchors = self.scales[self.members[..., part]], self.anchors[..., part]
        integers = (values / scales).round().clamp(-self.levels, self.levels)
        return torch.where(anchors, torch.where(values < 0, -self.levels, self.levels), integers) * scales

    def reordered(self, order: Tensor) -> Grid:
        """For a weight whose last axis is in another order, ``[..., n]`` of indices."""
        members, anchors = torch.gather(self.members, -1, order), torch.gather(self.anchors, -1, order)
        return Grid(self.scales, members, anchors, self.levels)


def widest(weight: Tensor, members: Tensor, levels: int) -> Grid:
    """The grid that a target takes: the largest magnitude of each group is the largest level.

    Args:
        weight: finite, any shape.
        members: of the same shape, int64 from 0 on without gaps.
        levels: 127 for int8, 7 for int4.
    """
    groups = int(members.max()) + 1
    magnitude, flat = weight.abs().flatten(), members.flatten()
    peaks = torch.zeros(groups).scatter_reduce_(0, flat, magnitude, "amax")
    order = torch.arange(flat.numel())
    first = torch.full((groups,), flat.numel()).scatter_reduce_(
        0, flat, torch.where(magnitude == peaks[flat], order, flat.numel()), "amin"
    )
    anchors = torch.zeros(flat.numel(), dtype=torch.bool)
    anchors[first[peaks > 0]] = True
    # Any scale serves a group of zeros.
    scales = torch.where(peaks > 0, peaks / levels, 1.0)
    return Grid(scales, members, anchors.reshape(members.shape), levels)


def least_squares(weight: Tensor, members: Tensor, levels: int, importance: Tensor) -> Grid:
    """The grid, of the widest and finer ones that clip, whose rounding has the least weighted squared error.

    Args:
        weight, members, levels: as :func:`widest` takes them.
        importance: ``[*weight]``: what an element's squared error costs.
    """
    grid = widest(weight, members, levels)
    best = torch.full_like(grid.scales, torch.inf)
    chosen = grid.scales
    for shrink in _SHRINKS:
        tried = Grid(grid.scales * shrink, members, grid.anchors, levels)
        costs = importance * (tried.nearest(weight) - weight) ** 2
        sums = torch.zeros_like(best, dtype=torch.float64).index_add_(0, members.flatten(), costs.flatten().double())
        better = sums < best
        best, chosen = torch.where(better, sums, best), torch.where(better, tried.scales, chosen)
    return Grid(chosen, members, grid.anchors, levels)


def memberships(shape: tuple[int, ...], groups: tuple[int, ...]) -> Tensor:
    """The group of each element, ``[*shape]``, int64; ``groups`` as in ``WeightStorage``."""
    members = torch.arange(torch.Size(groups).numel()).reshape(groups)
    for axis, (size, count) in enumerate(zip(shape, groups, strict=True)):
        members = members.repeat_interleave(size // count, axis)
    return members
