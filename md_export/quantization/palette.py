"""Indices into tables: the values that each group of a weight may take."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from md_export.kmeans import palettize


@dataclass(frozen=True)
class Palettes:
    """The values that each element of a weight may take.

    Attributes:
        tables: ``[*rows, entries]``, ascending: that of each row of the weight.
    """

    tables: Tensor

    def nearest(self, values: Tensor, part: slice = slice(None)) -> Tensor:  # noqa: ARG002 (as a grid is called)
        """``values``, any part of the rows, from the tables."""
        edges = ((self.tables[..., 1:] + self.tables[..., :-1]) / 2).contiguous()
        return torch.gather(self.tables, -1, torch.searchsorted(edges, values.contiguous()))

    def reordered(self, order: Tensor) -> Palettes:  # noqa: ARG002 (as a grid is called)
        """For a weight whose last axis is in another order: a table serves whole rows."""
        return self


def fitted(weight: Tensor, members: Tensor, entries: int, importance: Tensor) -> Palettes:
    """Tables with the least weighted squared error.

    Args:
        weight: ``[*rows, n]``, finite.
        members: of the same shape, int64 from 0 on without gaps; all elements of a row are of one group.
        entries: of each table.
        importance: ``[*rows, n]``: what an element's squared error costs.
    """
    tables = []
    for group in range(int(members.max()) + 1):
        inside = members == group
        costs = importance[inside].double()
        costs = costs if bool((costs > 0).any()) else torch.ones_like(costs)
        table, _ = palettize(weight[inside].numpy(), entries, importance=costs.numpy())
        tables.append(torch.from_numpy(table))
    return Palettes(torch.stack(tables)[members[..., 0]])
