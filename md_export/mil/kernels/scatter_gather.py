"""Reading and writing at computed positions.

An index out of bounds is an error here, also where the op set leaves the behaviour undefined (iOS17 and later without
``validate_indices``). Negative indices count from the end up to iOS16; from iOS17 on they are out of bounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from md_export.mil.bind import Stored, Tensor

_UPDATES: dict[str, Callable[..., Any]] = {
    "add": np.add.at,
    "sub": np.subtract.at,
    "mul": np.multiply.at,
    "div": np.true_divide.at,
    "max": np.maximum.at,
    "min": np.minimum.at,
}


def _positions(indices: Tensor, size: int) -> Tensor:
    """Indices as int64 in [0, size); negative ones count from the end."""
    indices = indices.long()
    return torch.where(indices < 0, indices + size, indices)


def _batched(x: Tensor, indices: Tensor, batch_dims: int) -> tuple[Tensor, Tensor]:
    """Both with their ``batch_dims`` leading axes joined into one."""
    batch = math.prod(x.shape[:batch_dims])
    return x.reshape(batch, *x.shape[batch_dims:]), indices.reshape(batch, *indices.shape[batch_dims:])


def _not_negative(indices: Tensor) -> Tensor:
    if indices.numel() and int(indices.min()) < 0:
        raise IndexError(f"index {int(indices.min())} is negative, which iOS17 and later do not take")
    return indices


def gather(x: Stored, indices: Stored, axis: int = 0, batch_dims: int = 0) -> Tensor:
    """Slices of x along ``axis`` at ``indices``: shape x[:axis] + indices[batch_dims:] + x[axis + 1:]."""
    axis %= x.dim()
    positions = _positions(indices, x.shape[axis])
    shape = (*x.shape[:axis], *indices.shape[batch_dims:], *x.shape[axis + 1 :])
    if batch_dims == 0:
        return x.index_select(axis, positions.reshape(-1)).reshape(shape)
    rows, picks = _batched(x, positions, batch_dims)
    inner = axis - batch_dims
    chosen = [row.index_select(inner, pick.reshape(-1)) for row, pick in zip(rows, picks, strict=True)]
    return torch.stack(chosen).reshape(shape)


def gather_along_axis(x: Stored, indices: Stored, axis: int = 0) -> Tensor:
    """Elements of x at ``indices`` along ``axis``; the result has the shape of ``indices``."""
    return torch.gather(x, axis, _positions(indices, x.shape[axis]))


def gather_nd(x: Stored, indices: Stored, batch_dims: int = 0) -> Tensor:
    """Slices of x at the index tuples in the last axis of ``indices``."""
    shape = (*indices.shape[:-1], *x.shape[batch_dims + indices.shape[-1] :])
    rows, tuples = _batched(x, indices, batch_dims)
    return torch.stack([row[_tuples(row, pick)] for row, pick in zip(rows, tuples, strict=True)]).reshape(shape)


def _tuples(x: Tensor, indices: Tensor) -> tuple[Tensor, ...]:
    return tuple(_positions(indices[..., i], x.shape[i]) for i in range(indices.shape[-1]))


def _scatter(data: Tensor, where: tuple[Any, ...], updates: Tensor, mode: str) -> Tensor:
    result = data.numpy().copy()
    values = updates.numpy()
    if mode == "update":
        result[where] = values
    elif mode == "div" and not data.is_floating_point():
        np.floor_divide.at(result, where, values)
    elif mode in _UPDATES:
        _UPDATES[mode](result, where, values)
    else:
        raise ValueError(f"scatter mode {mode!r}")
    return torch.from_numpy(result)


def scatter(data: Tensor, indices: Stored, updates: Tensor, axis: int = 0, mode: str = "add") -> Tensor:
    """``data`` with slices along ``axis`` at ``indices`` combined with ``updates``."""
    axis %= data.dim()
    where = (slice(None),) * axis + (_positions(indices, data.shape[axis]).numpy(),)
    return _scatter(data, where, updates, mode)


def scatter_along_axis(data: Tensor, indices: Stored, updates: Tensor, axis: int = 0, mode: str = "add") -> Tensor:
    """``data`` with the elements at ``indices`` along ``axis`` combined with ``updates``."""
    axis %= data.dim()
    where = list(np.indices(indices.shape, sparse=True))
    where[axis] = _positions(indices, data.shape[axis]).numpy()
    return _scatter(data, tuple(where), updates, mode)


def scatter_nd(data: Tensor, indices: Stored, updates: Tensor, mode: str = "add") -> Tensor:
    """``data`` with the slices at the index tuples in the last axis of ``indices`` combined with ``updates``."""
    where = tuple(index.numpy() for index in _tuples(data, indices))
    return _scatter(data, where, updates, mode)


def gather_ios17(
    x: Stored, indices: Stored, axis: int = 0, batch_dims: int = 0, validate_indices: bool = False
) -> Tensor:
    """As :func:`gather`, but negative indices are refused."""
    del validate_indices
    return gather(x, _not_negative(indices), axis, batch_dims)


def gather_along_axis_ios17(x: Stored, indices: Stored, axis: int = 0, validate_indices: bool = False) -> Tensor:
    """As :func:`gather_along_axis`, but negative indices are refused."""
    del validate_indices
    return gather_along_axis(x, _not_negative(indices), axis)


def gather_nd_ios17(x: Stored, indices: Stored, batch_dims: int = 0, validate_indices: bool = False) -> Tensor:
    """As :func:`gather_nd`, but negative indices are refused."""
    del validate_indices
    return gather_nd(x, _not_negative(indices), batch_dims)


def scatter_ios17(
    data: Tensor, indices: Stored, updates: Tensor, axis: int = 0, mode: str = "add", validate_indices: bool = False
) -> Tensor:
    """As :func:`scatter`, but negative indices are refused."""
    del validate_indices
    return scatter(data, _not_negative(indices), updates, axis, mode)


def scatter_along_axis_ios17(
    data: Tensor, indices: Stored, updates: Tensor, axis: int = 0, mode: str = "add", validate_indices: bool = False
) -> Tensor:
    """As :func:`scatter_along_axis`, but negative indices are refused."""
    del validate_indices
    return scatter_along_axis(data, _not_negative(indices), updates, axis, mode)


def scatter_nd_ios17(
    data: Tensor, indices: Stored, updates: Tensor, mode: str = "add", validate_indices: bool = False
) -> Tensor:
    """As :func:`scatter_nd`, but negative indices are refused."""
    del validate_indices
    return scatter_nd(data, _not_negative(indices), updates, mode)
