"""Normalizations."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from md_export.targets.coreml.mil.bind import Ints, Native, Tensor


def _affine(x: Tensor, gamma: Tensor | None, beta: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    if gamma is not None:
        x = x * gamma.reshape(shape)
    return x if beta is None else x + beta.reshape(shape)


def _standardize(x: Tensor, axes: tuple[int, ...], epsilon: float) -> Tensor:
    centred = x - x.mean(axes, keepdim=True)
    return centred * torch.rsqrt((centred * centred).mean(axes, keepdim=True) + epsilon)


def batch_norm(
    x: Native,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    """gamma · (x − mean) / √(variance + epsilon) + beta per channel (axis 1)."""
    if x.dtype == torch.float16:
        return torch.batch_norm(x, gamma, beta, mean, variance, False, 0.0, epsilon, False)
    shape = (-1,) + (1,) * (x.dim() - 2)
    scaled = (x - mean.reshape(shape)) * torch.rsqrt(variance + epsilon).reshape(shape)
    return _affine(scaled, gamma, beta, shape)


def instance_norm(x: Native, gamma: Tensor | None = None, beta: Tensor | None = None, epsilon: float = 1e-5) -> Tensor:
    """Zero mean and unit variance per sample and channel over the spatial axes, then the affine map."""
    if x.dtype == torch.float16:
        return torch.group_norm(x, x.shape[1], gamma, beta, epsilon, False)  # a group for every channel
    return _affine(_standardize(x, tuple(range(2, x.dim())), epsilon), gamma, beta, (-1,) + (1,) * (x.dim() - 2))


def l2_norm(x: Tensor, epsilon: float = 1e-6) -> Tensor:
    """x over the root of the sum of its squares, taken over the last three axes."""
    return x / torch.sqrt((x * x).sum((-3, -2, -1), keepdim=True) + epsilon)


def layer_norm(
    x: Tensor,
    axes: Ints | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    """Zero mean and unit variance over ``axes`` (all if not given), then the affine map over these axes."""
    chosen = sorted(axis % x.dim() for axis in (axes or range(x.dim())))
    shape = tuple(x.shape[i] if i in chosen else 1 for i in range(x.dim()))
    return _affine(_standardize(x, tuple(chosen), epsilon), gamma, beta, shape)


def local_response_norm(x: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Tensor:
    """x / (k + alpha / size · Σ x²) ^ beta, the sum over ``size`` neighbouring channels."""
    squares = (x * x).reshape(x.shape[0], 1, x.shape[1], math.prod(x.shape[2:]))
    padded = F.pad(squares, (0, 0, size // 2, (size - 1) // 2))
    total = F.avg_pool2d(padded, (size, 1), stride=1, divisor_override=1).reshape(x.shape)
    return x / (k + alpha / size * total) ** beta
