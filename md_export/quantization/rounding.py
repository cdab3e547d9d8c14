"""One weight, rounded as its scheme asks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from md_export.quantization.gptq import Levels, compensated
from md_export.quantization.grid import least_squares, memberships, widest
from md_export.quantization.palette import fitted
from md_export.quantization.products import InputSums, as_matrices
from md_export.scheme import Rounding
from md_export.storage import WeightStorage


def rounded(layer: nn.Module, weight: Tensor, storage: WeightStorage, how: Rounding, sums: InputSums | None) -> Tensor:
    """What a layer computes with once ``weight`` is stored.

    Args:
        layer: whose weight it is; it is not changed.
        weight: float32, ``[out, in, *kernel]``.
        storage: of the weight.
        how: ``nearest`` needs no sums.
        sums: of the layer's inputs; without them all inputs count alike, and no error can be made good.

    Returns:
        Float32 of the weight's shape, of which ``storage`` can hold every value.
    """
    matrices = as_matrices(layer, weight)
    members = as_matrices(layer, memberships(tuple(weight.shape), storage.groups))
    importance = torch.ones_like(matrices) if sums is None or how == "nearest" else _importance(matrices, sums)
    levels = _levels(matrices, members, storage, how, importance)
    if how == "gptq" and sums is not None:
        return compensated(matrices, sums.hessian, levels).reshape(weight.shape)
    return levels.nearest(matrices).reshape(weight.shape)


def _importance(matrices: Tensor, sums: InputSums) -> Tensor:
    """The mean square of the input that each element multiplies."""
    diagonal = torch.diagonal(sums.hessian, dim1=-2, dim2=-1) / max(1, sums.count)
    return diagonal[:, None].expand(matrices.shape).to(matrices.dtype)


def _levels(matrices: Tensor, members: Tensor, storage: WeightStorage, how: Rounding, importance: Tensor) -> Levels:
    if storage.entries:
        return fitted(matrices, members, storage.entries, importance)
    if how == "nearest":
        return widest(matrices, members, storage.levels)
    return least_squares(matrices, members, storage.levels, importance)
