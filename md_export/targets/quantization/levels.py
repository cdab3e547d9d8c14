"""Levels: the values that the elements of a weight may have, integers times scales or entries of tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from md_export.spec.tensors import Array

# Below half of the largest value, a finer grid clips too much: no weight of the nano checkpoint chose less.
_SHRINKS: Final = torch.linspace(1.0, 0.5, 26)


@dataclass(frozen=True)
class Grid:
    """Integer levels of each element of a weight.

    Attributes:
        scales: ``[G]``, positive.
        members: ``[*weight]``, int64: the group of each element.
        anchors: ``[*weight]``, bool: the largest element of each group. It always stays at the largest level, so that
            the target's rounding finds the same scale.
        levels: the largest integer.
    """

    scales: Tensor
    members: Tensor
    anchors: Tensor
    levels: int

    def nearest(self, values: Tensor, part: slice = slice(None)) -> Tensor:
        """Round ``values`` to the grid; they are the ``part`` of the last axis."""
        scales, anchors = self.scales[self.members[..., part]], self.anchors[..., part]
        integers = (values / scales).round().clamp(-self.levels, self.levels)
        return torch.where(anchors, torch.where(values < 0, -self.levels, self.levels), integers) * scales

    def reordered(self, order: Tensor) -> Grid:
        """Return the grid for a weight with a reordered last axis; ``order``: ``[..., n]`` of indices."""
        members, anchors = torch.gather(self.members, -1, order), torch.gather(self.anchors, -1, order)
        return Grid(self.scales, members, anchors, self.levels)


def widest(weight: Tensor, members: Tensor, levels: int) -> Grid:
    """Return the grid of a target's rounding: the largest magnitude of each group is the largest level.

    Args:
        weight: finite, any shape.
        members: the group of each element, int64 from 0 without gaps.
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
    # A group of zeros can have any scale.
    scales = torch.where(peaks > 0, peaks / levels, 1.0)
    return Grid(scales, members, anchors.reshape(members.shape), levels)


def least_squares(weight: Tensor, members: Tensor, levels: int, importance: Tensor) -> Grid:
    """Return the grid with the least weighted squared error, of the widest one and finer ones that clip.

    Args:
        weight, members, levels: see :func:`widest`.
        importance: ``[*weight]``: weight of an element's squared error.
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
    """Return the group of each element, ``[*shape]``, int64; ``groups`` as in ``WeightStorage``."""
    members = torch.arange(torch.Size(groups).numel()).reshape(groups)
    for axis, (size, count) in enumerate(zip(shape, groups, strict=True)):
        members = members.repeat_interleave(size // count, axis)
    return members


_Floats = NDArray[np.float64]

_MOST_ROUNDS: Final = 200


def palettize(
    weight: Array, entries: int, skip_zeros: bool = False, importance: Array | None = None
) -> tuple[Array, Array]:
    """Fit a palette by Lloyd's algorithm (1982), starting from quantiles of the density's cube root.

    Args:
        weight: float16 or float32, any shape, finite.
        entries: values in the table.
        skip_zeros: ignore zeros; their indices then have no meaning.
        importance: weight of each element's squared error, not negative and not all zero; default 1.

    Returns:
        The table ``[entries]`` in the weight's dtype, ascending, and indices ``[weight.size]``, uint8. A weight with
        fewer distinct values than entries is represented exactly, and the rest of the table repeats the last value.

    Raises:
        ValueError: the weight has NaN or Inf, or only zeros to skip.
    """
    flat: Any = weight.reshape(-1)
    used = flat != 0 if skip_zeros else np.ones(flat.shape, bool)
    taken = flat[used]
    if not np.isfinite(taken).all() or not taken.size:
        raise ValueError("a palette needs finite weights that are not all zero")
    values, places = np.unique(taken, return_inverse=True)
    counts = np.bincount(places, None if importance is None else importance.reshape(-1)[used])
    table = _table(values.astype(np.float64), counts, entries).astype(weight.dtype)
    exact = table.astype(np.float64)
    return table, np.searchsorted((exact[1:] + exact[:-1]) / 2, flat).astype(np.uint8)


def _table(values: _Floats, counts: NDArray[Any], entries: int) -> _Floats:
    if len(values) <= entries:
        return np.concatenate([values, np.repeat(values[-1:], entries - len(values))])
    mass = np.concatenate([[0], np.cumsum(counts)])
    moment = np.concatenate([[0], np.cumsum(counts * values)])
    table = _start(values, counts, entries)
    for _ in range(_MOST_ROUNDS):
        edges = np.searchsorted(values, (table[1:] + table[:-1]) / 2)
        bounds = np.concatenate([[0], edges, [len(values)]])
        inside = np.diff(mass[bounds])
        means = np.divide(np.diff(moment[bounds]), inside, out=table.copy(), where=inside > 0)
        if np.array_equal(means, table):
            break
        table = means
    return table


def _start(values: _Floats, counts: NDArray[Any], entries: int) -> _Floats:
    """Return quantiles of density^(1/3), the optimum for many entries (Panter and Dite 1951), slightly smoothed."""
    edges = np.unique(np.linspace(0, len(values), min(len(values), 16 * entries) + 1).astype(np.int64))
    total = np.concatenate([[0], np.cumsum(counts)])
    bounds = np.append(values, values[-1] + (values[-1] - values[0]) / len(values))[edges]
    widths = np.diff(bounds)
    share = np.cumsum((np.diff(total[edges]) * widths**2) ** (1 / 3))
    wanted = (np.arange(entries) + 0.5) / entries * share[-1]
    return np.asarray(np.interp(wanted, np.concatenate([[0], share]), bounds))


@dataclass(frozen=True)
class Palettes:
    """Palette entries of each row of a weight.

    Attributes:
        tables: ``[*rows, entries]``, ascending: the table of each row of the weight.
    """

    tables: Tensor

    def nearest(self, values: Tensor, part: slice = slice(None)) -> Tensor:  # noqa: ARG002 (as a grid is called)
        """Round ``values``, any part of the rows, to entries of the tables."""
        edges = ((self.tables[..., 1:] + self.tables[..., :-1]) / 2).contiguous()
        return torch.gather(self.tables, -1, torch.searchsorted(edges, values.contiguous()))

    def reordered(self, order: Tensor) -> Palettes:  # noqa: ARG002 (as a grid is called)
        """Return the palettes for a weight with a reordered last axis: unchanged, because a table is for whole rows."""
        return self


# The values that elements of a weight may have.
Levels = Grid | Palettes


def fitted(weight: Tensor, members: Tensor, entries: int, importance: Tensor) -> Palettes:
    """Return the tables with the least weighted squared error.

    Args:
        weight: ``[*rows, n]``, finite.
        members: the group of each element, int64 from 0 without gaps; all elements of a row are in one group.
        entries: number of entries of each table.
        importance: ``[*rows, n]``: weight of an element's squared error.
    """
    tables, rows = [], members[..., 0]
    for group in range(int(rows.max()) + 1):
        inside = rows == group
        costs = importance[inside].double()
        costs = costs if bool((costs > 0).any()) else torch.ones_like(costs)
        table, _ = palettize(weight[inside].numpy(), entries, importance=costs.numpy())
        tables.append(torch.from_numpy(table))
    return Palettes(torch.stack(tables)[rows])
