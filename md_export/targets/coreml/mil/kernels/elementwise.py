"""Elementwise operations of one and of two values."""

from __future__ import annotations

import torch

from md_export.targets.coreml.mil.bind import Native, Stored, Tensor
from md_export.targets.coreml.mil.dtypes import DTYPES


def abs_(x: Tensor) -> Tensor:
    """|x|."""
    return x.abs()


def acos(x: Tensor) -> Tensor:
    """Inverse cosine."""
    return torch.acos(x)


def asin(x: Tensor) -> Tensor:
    """Inverse sine."""
    return torch.asin(x)


def atan(x: Tensor) -> Tensor:
    """Inverse tangent."""
    return torch.atan(x)


def atanh(x: Tensor) -> Tensor:
    """Inverse hyperbolic tangent."""
    return torch.atanh(x)


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


def ceil(x: Tensor) -> Tensor:
    """Smallest integer not below x."""
    return torch.ceil(x)


def clip(x: Tensor, alpha: float, beta: float) -> Tensor:
    """min(max(x, alpha), beta)."""
    return x.clamp(alpha, beta)


def cos(x: Tensor) -> Tensor:
    """Cosine."""
    return torch.cos(x)


def cosh(x: Tensor) -> Tensor:
    """Hyperbolic cosine."""
    return torch.cosh(x)


def erf(x: Tensor) -> Tensor:
    """Gauss error function."""
    return torch.erf(x)


def exp(x: Tensor) -> Tensor:
    """eˣ."""
    return torch.exp(x)


def exp2(x: Tensor) -> Tensor:
    """2ˣ; integers stay integers."""
    return torch.exp2(x) if x.is_floating_point() else torch.exp2(x.double()).to(x.dtype)


def floor(x: Tensor) -> Tensor:
    """Largest integer not above x."""
    return torch.floor(x)


def inverse(x: Tensor, epsilon: float = 1e-4) -> Tensor:
    """1 / (x + epsilon)."""
    return 1 / (x + epsilon)


def log(x: Tensor, epsilon: float = 1e-45) -> Tensor:
    """log(x + epsilon)."""
    return torch.log(x + epsilon)


def logical_not(x: Tensor) -> Tensor:
    """Not x."""
    return torch.logical_not(x)


def round_(x: Tensor) -> Tensor:
    """Nearest integer, ties to even."""
    return torch.round(x)


def rsqrt(x: Tensor, epsilon: float = 1e-12) -> Tensor:
    """1 / √(x + epsilon)."""
    return torch.rsqrt(x + epsilon)


def sign(x: Tensor) -> Tensor:
    """−1, 0 or 1; NaN stays NaN, where torch gives 0."""
    return torch.where(torch.isnan(x), x, torch.sign(x)) if x.is_floating_point() else torch.sign(x)


def sin(x: Tensor) -> Tensor:
    """Sine."""
    return torch.sin(x)


def sinh(x: Tensor) -> Tensor:
    """Hyperbolic sine."""
    return torch.sinh(x)


def sqrt(x: Tensor) -> Tensor:
    """√x."""
    return torch.sqrt(x)


def square(x: Tensor) -> Tensor:
    """x²."""
    return x * x


def tan(x: Tensor) -> Tensor:
    """Tangent."""
    return torch.tan(x)


def tanh(x: Tensor) -> Tensor:
    """Hyperbolic tangent."""
    return torch.tanh(x)


def threshold(x: Tensor, alpha: float) -> Tensor:
    """max(x, alpha), in x's type."""
    return x.clamp(min=alpha if x.is_floating_point() else int(alpha))


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
