"""Activations, norms and matrix products."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from md_export.mil.bind import Ints, Native, Result, Tensor, Tensors
from md_export.mil.dtypes import TensorType


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
    x: Tensor, axes: Ints | None = None, gamma: Tensor | None = None, beta: Tensor | None = None, epsilon: float = 1e-5
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


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [*, I] · weightᵀ [I, O] + bias."""
    # Since iOS17 the constants may be of another type than x.
    weight = weight.to(x.dtype)
    bias = None if bias is None else bias.to(x.dtype)
    if x.is_floating_point():
        return F.linear(x, weight, bias)
    product = x @ weight.T
    return product if bias is None else product + bias


def matmul(x: Tensor, y: Tensor, result: Result, transpose_x: bool = False, transpose_y: bool = False) -> Tensor:
    """Batched x · y; a transposition has no effect on a vector; a constant of another type is cast to the result's."""
    if x.dtype != y.dtype and isinstance(result, TensorType):
        common = torch.float32 if result.dtype.kind == "float" else torch.int32
        x, y = x.to(common), y.to(common)
    if transpose_x and x.dim() > 1:
        x = x.transpose(-1, -2)
    if transpose_y and y.dim() > 1:
        y = y.transpose(-1, -2)
    return torch.matmul(x, y)


def einsum(values: Tensors, equation: str) -> Tensor:
    """Einstein summation; size-1 axes broadcast."""
    lifted = [value.float() if value.dtype == torch.float16 else value for value in values]
    return torch.einsum(equation.replace(" ", ""), *lifted)


def scaled_dot_product_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """softmax(query · keyᵀ / √E + mask) · value; False in a boolean mask excludes a key."""
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, float("-inf")) if attn_mask.dtype == torch.bool else scores + attn_mask
    return torch.softmax(scores, -1) @ value
