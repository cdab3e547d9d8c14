"""GroupNorm → instance norm over ``[B, G, C/G·H, W]``, then one multiply and add per channel.

    group_norm(x: [B, C, H, W], G)  →  instance_norm(x: [B, G, C/G·H, W]) reshaped back, ·gamma + beta

The groups of one picture become the "channels" of the instance norm; means and variances are the same.
"""

# Principle: tensors of rank ≤ 4 and norms as one op. coremltools lowers GroupNorm to ten ops on
# [B, G, C/G, H, W] (frontend/torch/ops.py, _group_norm_impl), a rank that the Neural Engine's layouts do not
# have; this form becomes reshape, instance_norm, reshape, batch_norm (fuse_elementwise_to_batchnorm).

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from md_export.spec.sampler import OneStep


class InstanceGroupNorm(nn.GroupNorm):
    """GroupNorm computed as an instance norm, with the same ``weight`` and ``bias``."""

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` → ``[B, C, H, W]``."""
        batch, channels, height, width = x.shape
        grouped = x.reshape(batch, self.num_groups, channels // self.num_groups * height, width)
        out = F.instance_norm(grouped, eps=self.eps).reshape(batch, channels, height, width)
        if self.weight is None:
            return out
        return out * self.weight[None, :, None, None] + self.bias[None, :, None, None]


def group_norm_to_instance_norm(module: nn.Module, one_step: OneStep) -> int:  # noqa: ARG001 (the table's signature)
    """Rewrite in place; return the number of norms changed."""
    found = [layer for layer in module.modules() if type(layer) is nn.GroupNorm]
    for norm in found:
        norm.__class__ = InstanceGroupNorm
    return len(found)
