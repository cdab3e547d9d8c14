"""softmax(scores) → relu(scores)/L in every self- and cross-attention, where L is the number of keys.

The paper (section 3.2) reaches relu attention by a short fine-tune of a softmax model; without one the
pictures drift. The scale of 1/L is from Wortsman et al. (arXiv 2309.08586); the paper gives no scale.
"""

from __future__ import annotations

from torch import nn

from md_export.models.layers import Attention, Relu, Softmax
from md_export.spec.sampler import OneStep


def softmax_to_relu(module: nn.Module, one_step: OneStep) -> int:  # noqa: ARG001 (the table's signature)
    """Rewrite in place; return the number of attentions changed."""
    found = [layer for layer in module.modules() if isinstance(layer, Attention) and isinstance(layer.weights, Softmax)]
    for attention in found:
        attention.weights = Relu()
    return len(found)


def count_relu(module: nn.Module) -> int:
    """Count attentions that already use relu."""
    return sum(isinstance(layer, Attention) and isinstance(layer.weights, Relu) for layer in module.modules())
