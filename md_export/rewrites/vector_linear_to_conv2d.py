"""Linears on vectors, as in the time embedding → 1×1 convolutions on maps of one pixel.

    linear(x: [B, C])  →  conv2d(x: [B, C, 1, 1]), weight [out, in, 1, 1] a view of [out, in]

The function is the same; the time embedding keeps its shape ``[B, dim]``.
"""

# Principle: LiteRT's GPU engine runs an int8 convolution, but fails on int8 FULLY_CONNECTED ("Failed to initialize
# kernel").

from __future__ import annotations

from torch import Tensor, nn

from md_export.models.layers import ResnetBlock, SepConvBlock, TimestepEmbedding
from md_export.models.patch_transformer import VectorLinear
from md_export.rewrites.adopt import TIMESTEP_EMBEDDING, type_name
from md_export.rewrites.fold_timestep import count_one_step
from md_export.rewrites.tokens_as_channels import as_conv2d
from md_export.spec.sampler import OneStep


class VectorConv2d(nn.Conv2d):
    """A 1×1 convolution on vectors."""

    def forward(self, x: Tensor) -> Tensor:
        """``[B, in]`` → ``[B, out]``."""
        return super().forward(x[:, :, None, None])[:, :, 0, 0]


def vector_linear_to_conv2d(module: nn.Module, one_step: OneStep) -> int:  # noqa: ARG001 (the table's signature)
    """Rewrite in place, before or after fold_timestep; return the number of linears changed."""
    found = [(parent, name, child) for parent in module.modules() for name, child in parent.named_children()]
    linears = [
        (parent, name, child)
        for parent, name, child in found
        if isinstance(child, nn.Linear) and (isinstance(child, VectorLinear) or _sees_vectors(parent))
    ]
    for parent, name, child in linears:
        conv = as_conv2d(child)
        conv.__class__ = VectorConv2d
        setattr(parent, name, conv)
    return len(linears)


def _sees_vectors(layer: nn.Module) -> bool:
    ours = isinstance(layer, (TimestepEmbedding, ResnetBlock, SepConvBlock))
    return ours or type_name(layer) == TIMESTEP_EMBEDDING


def count_vector_conv2d(module: nn.Module) -> int:
    """Count linears that already have the form or were removed by fold_timestep."""
    return count_one_step(module) + sum(isinstance(layer, VectorConv2d) for layer in module.modules())
