"""Multi-head attention → one pair of einsums per head, Apple's ``split_einsum``.

    [B, h, d, S] batched products  →  for each head: bchq,bkhc→bkhq, weights over k, bkhq,bchk→bchq; concatenated

Works on the result of linear_to_conv2d. It adds ops: four slices, two einsums and a softmax per head.
"""

# Principle: chunks small enough for the Neural Engine's cache, one head at a time, in einsums that Core ML maps to
# its hardware without transposes (ml-stable-diffusion, python_coreml_stable_diffusion/attention.py, split_einsum).
# Whether it is faster depends on the device and OS, so the recipe decides.

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from md_export.errors import RewriteError
from md_export.models.layers import Attention, Relu, Softmax
from md_export.rewrites.linear_to_conv2d import ChannelFirst
from md_export.rewrites.tokens_as_channels import ChannelAttention, scaled
from md_export.spec.sampler import OneStep


class SplitHeadAttention(ChannelAttention):
    """Attention computed head by head."""

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """``x: [B, C, 1, S]``, ``context: [B, D, 1, L]`` → ``[B, C, 1, S]``; ``mask: [B, 1, 1, L]``."""
        q = self.to_q(x)
        k: Any
        v: Any
        k, v = self.keys_values(x if context is None else context, lambda source: source)
        keys = k.transpose(1, 3).split(self.head_dim, dim=3)
        values = v.split(self.head_dim, dim=1)
        added = None if mask is None else mask.transpose(1, 3)
        heads = [
            torch.einsum("bkhq,bchk->bchq", self._weigh(torch.einsum("bchq,bkhc->bkhq", query, key), added), value)
            for query, key, value in zip(q.split(self.head_dim, dim=1), keys, values, strict=True)
        ]
        out: Tensor = self.to_out[0](torch.cat(heads, dim=1))
        return out

    def _weigh(self, scores: Tensor, added: Tensor | None) -> Tensor:
        """Scores ``[B, Lk, 1, Lq]`` → weights over the keys: axis 1 here, the last axis in the original."""
        scores = scaled(scores, self.scale)
        scores = scores if added is None else scores + added
        if isinstance(self.weights, Softmax):
            return scores.softmax(dim=1)
        assert isinstance(self.weights, Relu)  # noqa: S101 (checked when the class was changed)
        return F.relu(scores) * (self.weights.scale / scores.shape[1])


def split_attention_heads(module: nn.Module, one_step: OneStep) -> int:  # noqa: ARG001 (the table's signature)
    """Rewrite in place; return the number of attentions changed.

    Raises:
        RewriteError: linear_to_conv2d did not run before, or the attention uses neither softmax nor relu.
    """
    found = [layer for layer in module.modules() if isinstance(layer, Attention)]
    for attention in found:
        if not isinstance(getattr(attention, "form", None), ChannelFirst):
            raise RewriteError("split_attention_heads needs [B, C, 1, S]; put linear_to_conv2d before it in the recipe")
        if not isinstance(attention.weights, (Softmax, Relu)):
            raise RewriteError(f"split_attention_heads needs softmax or relu, not {type(attention.weights).__name__}")
    whole = [layer for layer in found if type(layer) is ChannelAttention]
    for attention in whole:
        attention.__class__ = SplitHeadAttention
    return len(whole)
