"""A convolution over very many input channels → a sum of convolutions over parts of them.

    conv(x), kernel height · width · channels > 8192  →  conv(x[:, :n]) + conv(x[:, n:2n]) + …

The products are the same; the order of the sum differs.
"""

# Principle: LiteRT's GPU engine may store the weights of a convolution as a texture with a row for each input value of
# each tap. WebGPU guarantees 8192 rows, and many phones have no more. Above that the engine fails to create the
# texture, reports success and outputs zeros (960 channels, 3×3 kernel, 32×32 map).

from __future__ import annotations

import math
from typing import Final

import torch.nn.functional as F
from torch import Tensor, nn

from md_export.spec.sampler import OneStep

LARGEST_SUM: Final = 8192


class SplitConv2d(nn.Conv2d):
    """A convolution computed as a sum over parts of the input channels, with the same ``weight`` and ``bias``."""

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` → ``[B, out, H', W']``."""
        parts = parts_of(self)
        bias, out = self.bias, None
        for given, weight in zip(x.chunk(parts, dim=1), self.weight.chunk(parts, dim=1), strict=True):
            made = F.conv2d(given, weight, bias, self.stride, self.padding, self.dilation)
            # The bias is added once, with the first part.
            bias, out = None, made if out is None else out + made
        assert out is not None  # noqa: S101 (there is one part at least)
        return out


def split_wide_conv2d(module: nn.Module, one_step: OneStep) -> int:  # noqa: ARG001 (the table's signature)
    """Rewrite in place; return the number of convolutions changed."""
    found = [layer for layer in module.modules() if type(layer) is nn.Conv2d and parts_of(layer) > 1]
    for conv in found:
        conv.__class__ = SplitConv2d
    return len(found)


def count_narrow(module: nn.Module) -> int:
    """Count convolutions that already have the form; 1 for a component without wide ones."""
    wide = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d) and parts_of(layer) > 1]
    return sum(isinstance(layer, SplitConv2d) for layer in wide) or int(not wide)


def parts_of(conv: nn.Conv2d) -> int:
    """Return the number of parts for the input channels; all have the same size except the last."""
    if conv.groups > 1:
        return 1
    return math.ceil(math.prod(conv.kernel_size) * conv.in_channels / LARGEST_SUM)
