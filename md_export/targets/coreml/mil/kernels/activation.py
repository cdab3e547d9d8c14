"""Activation functions."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from md_export.targets.coreml.mil.bind import Native, Tensor


def _per_channel(values: Tensor, rank: int) -> Tensor:
    return values.reshape(-1, *[1] * (rank - 2))


def clamped_relu(x: Tensor, alpha: float, beta: float) -> Tensor:
    """min(beta, x) for x ≥ 0, min(beta, alpha·x) below."""
    return torch.where(x >= 0, x, alpha * x).clamp(max=beta)


def elu(x: Tensor, alpha: float) -> Tensor:
    """x above 0, alpha·(eˣ − 1) below."""
    return F.elu(x, alpha)


def gelu(x: Tensor, mode: str = "EXACT") -> Tensor:
    """Gaussian error linear unit in one of MIL's three forms."""
    if mode == "EXACT":
        return F.gelu(x)
    if mode == "TANH_APPROXIMATION":
        return F.gelu(x, approximate="tanh")
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    raise ValueError(f"gelu mode {mode!r}")


def leaky_relu(x: Tensor, alpha: float) -> Tensor:
    """x above 0, alpha·x below."""
    return torch.where(x >= 0, x, alpha * x)


def linear_activation(x: Tensor, alpha: float, beta: float) -> Tensor:
    """alpha·x + beta."""
    return alpha * x + beta


def prelu(x: Tensor, alpha: Tensor) -> Tensor:
    """x above 0, alpha·x below, alpha per channel (axis 1)."""
    return torch.where(x > 0, x, _per_channel(alpha, x.dim()) * x)


def relu(x: Native) -> Tensor:
    """max(x, 0)."""
    return torch.relu(x)


def relu6(x: Tensor) -> Tensor:
    """min(max(x, 0), 6)."""
    return x.clamp(0, 6)


def scaled_tanh(x: Tensor, alpha: float, beta: float) -> Tensor:
    """alpha·tanh(beta·x)."""
    return alpha * torch.tanh(beta * x)


def sigmoid(x: Native) -> Tensor:
    """1 / (1 + e⁻ˣ)."""
    return torch.sigmoid(x)


def sigmoid_hard(x: Tensor, alpha: float, beta: float) -> Tensor:
    """min(max(alpha·x + beta, 0), 1)."""
    return (alpha * x + beta).clamp(0, 1)


def silu(x: Native) -> Tensor:
    """x · sigmoid(x)."""
    return F.silu(x)


def softmax(x: Native, axis: int = -1) -> Tensor:
    """eˣ over its sum along ``axis``."""
    return torch.softmax(x, axis)


def softplus(x: Tensor) -> Tensor:
    """log(1 + eˣ), without overflow."""
    return torch.log1p(torch.exp(-x.abs())) + x.clamp(min=0)


def softplus_parametric(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """alpha·log(1 + e^(beta·x)), both per channel (axis 1)."""
    return _per_channel(alpha, x.dim()) * softplus(_per_channel(beta, x.dim()) * x)


def softsign(x: Tensor) -> Tensor:
    """x / (1 + |x|)."""
    return F.softsign(x)


def thresholded_relu(x: Tensor, alpha: float) -> Tensor:
    """x where it is at least alpha, else 0; NaN stays NaN."""
    return torch.where(x < alpha, torch.zeros_like(x), x)
