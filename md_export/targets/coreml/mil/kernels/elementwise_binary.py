"""Elementwise functions of two tensors, with numpy's broadcasting."""

from __future__ import annotations

import torch

from md_export.targets.coreml.mil.bind import Native, Stored, Tensor


def add(x: Native, y: Native) -> Tensor:
    """x + y."""
    return x + y


def equal(x: Tensor, y: Tensor) -> Tensor:
    """x = y."""
    return torch.eq(x, y)


def floor_div(x: Tensor, y: Tensor) -> Tensor:
    """Largest integer not above x / y."""
    return torch.floor_divide(x, y)


def greater(x: Tensor, y: Tensor) -> Tensor:
    """x > y."""
    return x > y


def greater_equal(x: Tensor, y: Tensor) -> Tensor:
    """x ≥ y."""
    return x >= y


def less(x: Tensor, y: Tensor) -> Tensor:
    """x < y."""
    return x < y


def less_equal(x: Tensor, y: Tensor) -> Tensor:
    """x ≤ y."""
    return x <= y


def logical_and(x: Tensor, y: Tensor) -> Tensor:
    """x and y."""
    return torch.logical_and(x, y)


def logical_or(x: Tensor, y: Tensor) -> Tensor:
    """x or y."""
    return torch.logical_or(x, y)


def logical_xor(x: Tensor, y: Tensor) -> Tensor:
    """Either x or y."""
    return torch.logical_xor(x, y)


def maximum(x: Tensor, y: Tensor) -> Tensor:
    """The larger; NaN if either is."""
    return torch.maximum(x, y)


def minimum(x: Tensor, y: Tensor) -> Tensor:
    """The smaller; NaN if either is."""
    return torch.minimum(x, y)


def mod(x: Tensor, y: Tensor) -> Tensor:
    """Remainder with the sign of y."""
    return torch.remainder(x, y)


def mul(x: Native, y: Native) -> Tensor:
    """x · y."""
    return x * y


def not_equal(x: Tensor, y: Tensor) -> Tensor:
    """x ≠ y."""
    return torch.ne(x, y)


def pow_(x: Tensor, y: Tensor) -> Tensor:
    """x to the power of y; integers stay integers."""
    if x.is_floating_point() or y.is_floating_point():
        return torch.pow(x, y)
    return torch.pow(x.double(), y.double()).to(x.dtype)


def real_div(x: Tensor, y: Tensor) -> Tensor:
    """x / y; integers give the truncated quotient, as their declared type is an integer."""
    if x.is_floating_point() or y.is_floating_point():
        return x / y
    return torch.div(x, y, rounding_mode="trunc")


def select(cond: Stored, a: Stored, b: Stored) -> Tensor:
    """A where the condition holds, else b."""
    return torch.where(cond.bool(), a, b)


def sub(x: Native, y: Native) -> Tensor:
    """x − y."""
    return x - y
