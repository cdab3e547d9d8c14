"""Round a weight column by column, compensating each column's error in the columns that are not rounded yet.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers" (2210.17323), after
Hassibi and Stork's Optimal Brain Surgeon. coremltools supports it for sequential layers, torchao only for linears; this
version supports convolutions, also grouped ones, and palettes, and does not move a grid's anchors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from md_export.rewrites.split_wide_conv2d import SplitConv2d
from md_export.rewrites.upsample_to_four_convs import FourConv2d
from md_export.spec.scheme import Rounding, WeightStorage
from md_export.targets.quantization.levels import Levels, fitted, least_squares, memberships, widest

# Largest number of positions of a map that are used per input; a larger map is sampled by rows and columns.
_MOST_POSITIONS: Final = 16384
# Modules that do not compute with their weight directly.
_DERIVED: Final = (FourConv2d, SplitConv2d)
# Damping, as a share of the mean of the Hessian's diagonal; the paper's figure.
_DAMPING: Final = 0.01
# Columns between two updates of all later columns; the paper's figure.
_COLUMNS: Final = 128


def products(module: nn.Module) -> Iterator[tuple[str, nn.Conv2d | nn.Linear]]:
    """Yield the layers that multiply their input with a weight, by module path."""
    for path, layer in module.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear) and not is_derived(layer):
            yield path, layer


def is_derived(layer: nn.Module) -> bool:
    """Whether a layer computes with a value derived from its weight, which the target stores rounded to nearest."""
    return isinstance(layer, _DERIVED)


def as_matrices(layer: nn.Module, values: Tensor) -> Tensor:
    """Reshape values of the weight's shape, ``[out, in, *kernel]`` → ``[groups, out / groups, n]``."""
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    return values.reshape(groups, values.shape[0] // groups, -1)


def columns(layer: nn.Conv2d | nn.Linear, x: Tensor) -> Tensor:
    """Reshape a layer's input to ``[groups, n, positions]``, the right operand of each group's matrix."""
    if isinstance(layer, nn.Linear):
        return x.reshape(1, -1, layer.in_features).transpose(1, 2)
    # A layer for vectors may get [B, C].
    maps = x if x.ndim == 4 else x[..., None, None]
    padding: Any = layer.padding
    step = max(1, math.ceil(math.sqrt(maps.shape[2] * maps.shape[3] / _MOST_POSITIONS)))
    stride = tuple(step * size for size in layer.stride)
    unfolded = F.unfold(maps, layer.kernel_size, layer.dilation, padding, stride)
    batch, _, positions = unfolded.shape
    split = unfolded.reshape(batch, layer.groups, -1, positions)
    return split.permute(1, 2, 0, 3).reshape(layer.groups, -1, batch * positions)


class InputSums:
    """Sums over all inputs of one layer, collected by a hook until :meth:`close`.

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
        """Return the mean input, ``[groups, n]``, float64."""
        return self.total / max(1, self.count)

    def close(self) -> None:
        """Remove the hook."""
        self._handle.remove()


def compensated(weight: Tensor, hessian: Tensor, levels: Levels) -> Tensor:
    """Round a weight so that the layer's outputs change least, starting with the columns of the largest inputs.

    Args:
        weight: ``[B, R, n]``: B independent products of R outputs and n inputs.
        hessian: ``[B, n, n]``, sum of x·xᵀ over inputs x of the product.
        levels: levels for a weight of this shape.

    Returns:
        The rounded weight, ``[B, R, n]`` in the weight's dtype.
    """
    diagonal = torch.diagonal(hessian, dim1=-2, dim2=-1)
    order = torch.argsort(diagonal, dim=-1, descending=True, stable=True)
    spread = order[:, None].expand(weight.shape)
    rows = torch.gather(hessian.double(), 1, order[..., None].expand(hessian.shape))
    sorted_hessian = torch.gather(rows, 2, order[:, None].expand(hessian.shape))
    rounded = _in_order(torch.gather(weight, -1, spread), _factor(sorted_hessian), levels.reordered(spread))
    return torch.empty_like(weight).scatter_(-1, spread, rounded)


def _factor(hessian: Tensor) -> Tensor:
    """Return the upper Cholesky factor of the damped inverse; inputs that are always zero count as independent."""
    diagonal = torch.diagonal(hessian, dim1=-2, dim2=-1)
    mean = diagonal.mean(dim=-1, keepdim=True)
    diagonal += _DAMPING * torch.where(mean > 0, mean, 1.0)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor


def _in_order(weight: Tensor, factor: Tensor, levels: Levels) -> Tensor:
    left, out = weight.double(), torch.empty_like(weight)
    for start in range(0, weight.shape[-1], _COLUMNS):
        stop = min(start + _COLUMNS, weight.shape[-1])
        errors = torch.empty_like(left[..., start:stop])
        for column in range(start, stop):
            part = slice(column, column + 1)
            out[..., part] = levels.nearest(left[..., part].to(weight.dtype), part)
            error = (left[..., part] - out[..., part]) / factor[:, column : column + 1, part]
            left[..., column:stop] -= error @ factor[:, part, column:stop]
            errors[..., column - start : column - start + 1] = error
        left[..., stop:] -= errors @ factor[:, start:stop, stop:]
    return out


def rounded(layer: nn.Module, weight: Tensor, storage: WeightStorage, how: Rounding, sums: InputSums | None) -> Tensor:
    """Return the weight that a layer computes with once ``weight`` is stored.

    Args:
        layer: owner of the weight; it does not change.
        weight: float32, ``[out, in, *kernel]``.
        storage: storage of the weight.
        how: ``nearest`` needs no sums.
        sums: sums of the layer's inputs; without them, all inputs count equally and errors are not compensated.

    Returns:
        Float32 in the weight's shape; ``storage`` can represent every value.
    """
    matrices = as_matrices(layer, weight)
    members = as_matrices(layer, memberships(tuple(weight.shape), storage.groups))
    importance = torch.ones_like(matrices) if sums is None or how == "nearest" else _importance(matrices, sums)
    levels = _levels(matrices, members, storage, how, importance)
    if how == "gptq" and sums is not None:
        return compensated(matrices, sums.hessian, levels).reshape(weight.shape)
    return levels.nearest(matrices).reshape(weight.shape)


def _importance(matrices: Tensor, sums: InputSums) -> Tensor:
    """Return the mean square of the input that each element multiplies."""
    diagonal = torch.diagonal(sums.hessian, dim1=-2, dim2=-1) / max(1, sums.count)
    return diagonal[:, None].expand(matrices.shape).to(matrices.dtype)


def _levels(matrices: Tensor, members: Tensor, storage: WeightStorage, how: Rounding, importance: Tensor) -> Levels:
    if storage.entries:
        return fitted(matrices, members, storage.entries, importance)
    if how == "nearest":
        return widest(matrices, members, storage.levels)
    return least_squares(matrices, members, storage.levels, importance)
