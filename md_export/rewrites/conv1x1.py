"""A linear layer as the 1×1 convolution that it is."""

from __future__ import annotations

from torch import nn


def as_conv2d(linear: nn.Linear) -> nn.Conv2d:
    """The same weight and bias, not copied: weight ``[out, in, 1, 1]`` is a view of ``[out, in]``."""
    conv = nn.Conv2d(linear.in_features, linear.out_features, 1, bias=linear.bias is not None, device="meta")
    conv.weight = nn.Parameter(linear.weight.detach()[:, :, None, None], requires_grad=linear.weight.requires_grad)
    conv.bias = linear.bias
    return conv.train(linear.training)
