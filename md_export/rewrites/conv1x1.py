"""A linear layer as the 1×1 convolution that it is, and back."""

from __future__ import annotations

from torch import nn


def as_conv2d(linear: nn.Linear) -> nn.Conv2d:
    """The same weight and bias, not copied: weight ``[out, in, 1, 1]`` is a view of ``[out, in]``."""
    conv = nn.Conv2d(linear.in_features, linear.out_features, 1, bias=linear.bias is not None, device="meta")
    conv.weight = nn.Parameter(linear.weight.detach()[:, :, None, None], requires_grad=linear.weight.requires_grad)
    conv.bias = linear.bias
    return conv.train(linear.training)


def as_linear(conv: nn.Conv2d) -> nn.Linear:
    """The inverse of :func:`as_conv2d`, not copied either; ``conv`` is 1×1."""
    linear = nn.Linear(conv.in_channels, conv.out_channels, bias=conv.bias is not None, device="meta")
    linear.weight = nn.Parameter(conv.weight.detach()[:, :, 0, 0], requires_grad=conv.weight.requires_grad)
    linear.bias = conv.bias  # type: ignore[assignment]  # None where there is none
    return linear.train(conv.training)
