"""Matrix products."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from md_export.targets.coreml.mil.bind import Result, Tensor, Tensors
from md_export.targets.coreml.mil.dtypes import TensorType


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
