"""The attention scale 1/√d → into the query projection.

    (W·x)·scale  →  (W·scale)·x

Saves one multiplication of a whole activation per attention. With a head dimension of 64 the scale is 1/8, and
the stored weights are exactly those of the checkpoint divided by 8.
"""

# Principle: constants belong in the weights; an elementwise op on the Neural Engine is a pass over memory
# (Apple, "Deploying Transformers on the Apple Neural Engine", principle 4: bandwidth-bound operations).

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from md_export.models.layers import Attention
from md_export.models.vae import SpatialAttention
from md_export.spec.sampler import OneStep


def fold_attention_scale(module: nn.Module, one_step: OneStep) -> int:  # noqa: ARG001 (the table's signature)
    """Rewrite in place, before or after linear_to_conv2d; return the number of attentions changed."""
    fired = 0
    for attention, query in _scaled(module):
        if attention.scale != 1.0:
            _multiply(query, attention.scale)
            attention.scale = 1.0
            fired += 1
    return fired


def count_unscaled(module: nn.Module) -> int:
    """Count attentions without a separate scale; 1 for a component without attention, such as the lite decoder."""
    found = _scaled(module)
    return sum(attention.scale == 1.0 for attention, _ in found) if found else 1


def _scaled(module: nn.Module) -> list[tuple[Any, Any]]:
    """Return attentions with their query projections: ours, and transformers' CLIPAttention by its attributes."""
    ours = [(layer, layer.to_q) for layer in module.modules() if isinstance(layer, (Attention, SpatialAttention))]
    clip = [(layer, layer.q_proj) for layer in module.modules() if hasattr(layer, "q_proj") and hasattr(layer, "scale")]
    return ours + clip


def _multiply(projection: nn.Linear | nn.Conv2d, scale: float) -> None:
    # New tensors, because the checkpoint's may be mapped read-only from its file.
    with torch.no_grad():
        projection.weight = nn.Parameter(projection.weight * scale, requires_grad=False)
        if projection.bias is not None:
            projection.bias = nn.Parameter(projection.bias * scale, requires_grad=False)
