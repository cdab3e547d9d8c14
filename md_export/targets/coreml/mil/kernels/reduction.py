"""Reductions."""

from __future__ import annotations

from collections.abc import Callable

import torch

from md_export.targets.coreml.mil.bind import Ints, Stored, Tensor


def _axes(x: Tensor, axes: Ints | None) -> tuple[int, ...]:
    return tuple(range(x.dim())) if axes is None else tuple(axis % x.dim() for axis in axes)


def _in_own_type(x: Tensor, reduce: Callable[[Tensor], Tensor]) -> Tensor:
    """Integers are reduced in double precision and come back truncated, as numpy's results are cast."""
    return reduce(x) if x.is_floating_point() else reduce(x.double()).to(x.dtype)


def reduce_argmax(x: Stored, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32") -> Tensor:
    """Position of the largest element along ``axis``, the first of equals."""
    del output_dtype  # the program declares it as the result's type
    return torch.max(x, axis, keepdim=keep_dims).indices if x.dim() else torch.zeros((), dtype=torch.int32)


def reduce_argmin(x: Stored, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32") -> Tensor:
    """Position of the smallest element along ``axis``, the first of equals."""
    del output_dtype
    return torch.min(x, axis, keepdim=keep_dims).indices if x.dim() else torch.zeros((), dtype=torch.int32)


def reduce_l1_norm(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    """Σ |x|."""
    return _in_own_type(x, lambda v: v.abs().sum(_axes(v, axes), keepdim=keep_dims))


def reduce_l2_norm(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    """√Σ x²."""
    return _in_own_type(x, lambda v: (v * v).sum(_axes(v, axes), keepdim=keep_dims).sqrt())


def reduce_log_sum(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    """Log Σ x."""
    return _in_own_type(x, lambda v: v.sum(_axes(v, axes), keepdim=keep_dims).log())


def reduce_log_sum_exp(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    """Log Σ eˣ, without overflow."""
    return _in_own_type(x, lambda v: torch.logsumexp(v, _axes(v, axes), keepdim=keep_dims))


def reduce_max(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    """Largest element."""
    return torch.amax(x, _axes(x, axes), keepdim=keep_dims)


def reduce_mean(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    """Mean."""
    return _in_own_type(x, lambda v: v.mean(_axes(v, axes), keepdim=keep_dims))


def reduce_min(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    """Smallest element."""
    return torch.amin(x, _axes(x, axes), keepdim=keep_dims)


def reduce_prod(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    """Product."""
    for axis in sorted(_axes(x, axes), reverse=True):
        x = x.prod(axis, keepdim=keep_dims, dtype=x.dtype)
    return x


def reduce_sum(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    """Σ x."""
    return x.sum(_axes(x, axes), keepdim=keep_dims, dtype=x.dtype)


def reduce_sum_square(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    """Σ x²."""
    return (x * x).sum(_axes(x, axes), keepdim=keep_dims, dtype=x.dtype)
