"""GroupNorm → means over width, then height, then the channels of a group, all at rank 4.

    group_norm(x: [B, C, H, W], G)  →  c = x - up(down(m(x))),  c·up(rsqrt(down(m(c²)) + eps))·gamma + beta

    m       mean over W, then over H: [B, C, H, W] → [B, C, 1, 1]
    down    1×1 convolution with constant weights: mean of each group's channels, C → G
    up      1×1 convolution with constant weights: a group's value to each of its channels, G → C

Means and variances are the same except for the order of float32 sums.
"""

# Principle: LiteRT's GPU engine supports tensors of rank ≤ 4 and no BROADCAST_TO, which the converter writes for
# a GroupNorm with gamma 1. A convolution copies a group's value to its channels without it. Channels stay last, so
# no TRANSPOSE or RESHAPE is needed. A mean in two stages sums H and then W terms instead of H·W.

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from md_export.spec.sampler import OneStep


class StagedGroupNorm(nn.GroupNorm):
    """GroupNorm computed in stages, with the same ``weight`` and ``bias``.

    ``down: [G, C, 1, 1]`` and ``up: [C, G, 1, 1]`` depend on G and C only; a file stores equal ones once.
    """

    down: Tensor
    up: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` → ``[B, C, H, W]``."""
        centred = x - F.conv2d(self._of_groups(x), self.up)
        spread = torch.rsqrt(self._of_groups(centred * centred) + self.eps)
        factor = F.conv2d(spread, self.up)
        if self.weight is None:
            return centred * factor
        return centred * (factor * self.weight[None, :, None, None]) + self.bias[None, :, None, None]

    def _of_groups(self, x: Tensor) -> Tensor:
        """Return the mean of each group: ``[B, C, H, W]`` → ``[B, G, 1, 1]``."""
        return F.conv2d(x.mean(dim=3, keepdim=True).mean(dim=2, keepdim=True), self.down)


def staged_group_norm(module: nn.Module, one_step: OneStep) -> int:  # noqa: ARG001 (the table's signature)
    """Rewrite in place; return the number of norms changed."""
    found = [layer for layer in module.modules() if type(layer) is nn.GroupNorm]
    for norm in found:
        norm.__class__ = StagedGroupNorm
        member = torch.eye(norm.num_groups).repeat_interleave(norm.num_channels // norm.num_groups, dim=1)
        norm.register_buffer("down", (member / member.sum(1, keepdim=True))[:, :, None, None], persistent=False)
        norm.register_buffer("up", member.t()[:, :, None, None].contiguous(), persistent=False)
    return len(found)
