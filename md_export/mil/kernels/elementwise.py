"""Elementwise operations of one and of two values."""

from __future__ import annotations

from collections.abc import Callable

import torch

from md_export.mil.bind import Kernel, Native, Stored, Tensor
from md_export.mil.dtypes import DTYPES


def of_one(function: Callable[[Tensor], Tensor]) -> Kernel:
    """Kernel of a torch function of one tensor."""

    def kernel(x: Tensor) -> Tensor:
        return function(x)

    kernel.__name__, kernel.__doc__ = function.__name__, f"``torch.{function.__name__}(x)``."
    return kernel


def of_two(function: Callable[[Tensor, Tensor], Tensor]) -> Kernel:
    """Kernel of a torch function of two tensors, with numpy's broadcasting."""

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return function(x, y)

    kernel.__name__ = function.__name__
    kernel.__doc__ = f"``torch.{function.__name__}(x, y)``, with numpy's broadcasting."
    return kernel


def cast(x: Stored, dtype: str) -> Tensor:
    """x as ``dtype``; floating-point values lose their fraction, numbers become ``x != 0`` for bool."""
    target = DTYPES[dtype].carrier
    if target is None:
        raise ValueError(f"cast to {dtype}")
    if dtype == "fp16":
        # Rounding to the declared type is the program's business: it is left out where float16 stays float32.
        return x.float()
    if dtype == "uint16":
        # The carrier is wider than the type: wrap as the type does.
        return x.to(target) & 0xFFFF
    return x.to(target)


def clip(x: Tensor, alpha: float, beta: float) -> Tensor:
    """min(max(x, alpha), beta)."""
    return x.clamp(alpha, beta)


def exp2(x: Tensor) -> Tensor:
    """2ˣ; integers stay integers."""
    return torch.exp2(x) if x.is_floating_point() else torch.exp2(x.double()).to(x.dtype)


def inverse(x: Tensor, epsilon: float = 1e-4) -> Tensor:
    """1 / (x + epsilon)."""
    return 1 / (x + epsilon)


def log(x: Tensor, epsilon: float = 1e-45) -> Tensor:
    """log(x + epsilon)."""
    return torch.log(x + epsilon)


def rsqrt(x: Tensor, epsilon: float = 1e-12) -> Tensor:
    """1 / √(x + epsilon)."""
    return torch.rsqrt(x + epsilon)


def sign(x: Tensor) -> Tensor:
    """−1, 0 or 1; NaN stays NaN, where torch gives 0."""
    return torch.where(torch.isnan(x), x, torch.sign(x)) if x.is_floating_point() else torch.sign(x)


def square(x: Tensor) -> Tensor:
    """x²."""
    return x * x


def threshold(x: Tensor, alpha: float) -> Tensor:
    """max(x, alpha), in x's type."""
    return x.clamp(min=alpha if x.is_floating_point() else int(alpha))


def add(x: Native, y: Native) -> Tensor:
    """x + y."""
    return x + y


def mul(x: Native, y: Native) -> Tensor:
    """x · y."""
    return x * y


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
