"""Attention of tokens_to_maps with rank-4 products: heads as a separate axis instead of in the batch.

    scores [B·heads, Lq, Lk], rank 3, + mask [1, Lq, Lk]  →  [B, heads, Lq, Lk] + mask [1, heads, Lq, Lk]

The same products in the same order. The GPUs of phones were reported to compute the rank-3 form wrongly (LiteRT#8619:
Mali with LiteRT 2.1.3, Adreno 740 and 830 with the older delegate), and to add a mask of one head to all heads wrongly
at rank 4 (LiteRT#8593, 2.1.3 to 2.1.5), so the mask has all heads. No product transposes an operand by a flag
(LiteRT#8913).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from md_export.errors import RewriteError
from md_export.models.text_encoder import TextEncoder
from md_export.rewrites.tokens_as_channels import ATTENTIONS, ROOTS, ChannelClipAttention
from md_export.rewrites.tokens_to_maps import Maps
from md_export.spec.sampler import OneStep


class RankFourMaps(Maps):
    """``[B, C, H, W]`` throughout; heads are an axis: ``[B, heads, H·W, C/heads]``."""

    def mask(self, mask: Tensor, heads: int) -> Tensor:
        """``[B, 1 or heads, Lq or 1, Lk]`` → ``[B, heads, Lq or 1, Lk]``, concatenated: no GPU has BROADCAST_TO."""
        return mask if mask.shape[1] == heads else torch.cat([mask] * heads, dim=1)

    def heads(self, x: Tensor, heads: int) -> Tensor:
        """``[B, C, H, W]`` → ``[B, heads, H·W, C/heads]``."""
        batch, channels, height, width = x.shape
        return x.permute(0, 2, 3, 1).reshape(batch, height * width, heads, channels // heads).transpose(1, 2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, weigh: Callable[[Tensor], Tensor], shape: Any) -> Tensor:
        """``[B, heads, Lq or Lk, d]`` → ``[B, heads·d, H, W]``; ``shape``: shape of the queries."""
        batch, _, height, width = shape
        # Converters would turn one transpose of an operand into a flag of the product.
        keys = k.permute(0, 2, 1, 3).permute(0, 2, 3, 1)
        x = torch.matmul(weigh(torch.matmul(q, keys)), v)
        return x.transpose(1, 2).reshape(batch, height, width, -1).permute(0, 3, 1, 2)


def rank_4_attention(module: nn.Module, one_step: OneStep) -> int:  # noqa: ARG001 (the table's signature)
    """Rewrite in place; return the number of attentions changed.

    Raises:
        RewriteError: tokens_to_maps did not run before.
    """
    found = [place for place in _in_form(module) if not isinstance(place.form, RankFourMaps)]
    if not _in_form(module) and any(isinstance(layer, ROOTS) for layer in module.modules()):
        raise RewriteError("rank_4_attention must come after tokens_to_maps; move it in the recipe")
    for place in found:
        place.form = RankFourMaps()
    for encoder in module.modules():
        if isinstance(encoder, TextEncoder):
            # A buffer of the module, so that audit can match it with the artifact's constant.
            (heads,) = {place.heads for place in _in_form(encoder) if isinstance(place, ChannelClipAttention)}
            encoder.mask = encoder.mask[:, :1].expand(-1, heads, -1, -1).contiguous()
    return sum(isinstance(place, ATTENTIONS) for place in found)


def count_rank_4(module: nn.Module) -> int:
    """Count attentions of this form; 1 for a component without tokens, such as the lite decoder."""
    return count_rank_4_products(module) or int(not _in_form(module))


def count_rank_4_products(module: nn.Module) -> int:
    """Count attentions at rank 4."""
    return sum(isinstance(place, ATTENTIONS) and isinstance(place.form, RankFourMaps) for place in _in_form(module))


def _in_form(module: nn.Module) -> list[Any]:
    """Return the modules and patch layouts that have the form of tokens_to_maps."""
    places = [place for layer in module.modules() for place in (layer, getattr(layer, "layout", None))]
    return [place for place in places if isinstance(getattr(place, "form", None), Maps)]
