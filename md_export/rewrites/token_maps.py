"""Substitutes that compute on maps ``[B, C, H, W]`` what the originals compute on tokens ``[B, H·W, C]``.

Each is a subclass that an original becomes in place, or holds the original's own children under their names:
module paths and parameters stay what they were. Text is a map of height 1.
"""

# Principle, for the whole file: LiteRT keeps maps as [B, H, W, C], where a linear on tokens is a 1×1 convolution,
# a norm over channels reduces the last axis, and nothing between attentions needs a RESHAPE or TRANSPOSE. The
# GPU engine runs an int8 convolution but no int8 FULLY_CONNECTED of this size ("Failed to initialize kernel"), and
# it computes a rank-4 batched product followed by a mask wrongly: attention is of rank 3, heads in the batch.

from __future__ import annotations

import torch
from torch import Tensor, nn

from md_export.models.layers import Attention
from md_export.models.text_encoder import TextEncoder
from md_export.models.unet import TransformerStack
from md_export.models.vae import SpatialAttention
from md_export.rewrites.token_forms import ClipProjections, scaled


def to_map(tokens: Tensor) -> Tensor:
    """``[B, L, C]`` → ``[B, C, 1, L]``; with channels last a reshape."""
    return tokens[:, None].permute(0, 3, 1, 2)


def to_heads(x: Tensor, heads: int) -> Tensor:
    """``[B, C, H, W]`` → ``[B·heads, H·W, C/heads]``."""
    batch, channels, height, width = x.shape
    size = (height * width, heads, channels // heads)
    last = x.permute(0, 2, 3, 1)
    if batch == 1:  # as in every artifact: one RESHAPE less
        return last.reshape(size).transpose(0, 1)
    return last.reshape(batch, *size).transpose(1, 2).flatten(0, 1)


def from_heads(x: Tensor, shape: torch.Size) -> Tensor:
    """``[B·heads, H·W, d]`` → ``[B, heads·d, H, W]``; ``shape`` is that of the queries' map."""
    batch, _, height, width = shape
    last = x.transpose(0, 1) if batch == 1 else x.reshape(batch, -1, *x.shape[1:]).transpose(1, 2)
    return last.reshape(batch, height, width, -1).permute(0, 3, 1, 2)


class MapLayerNorm(nn.LayerNorm):
    """LayerNorm over the channels of a map; keeps ``weight`` and ``bias``."""

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` → ``[B, C, H, W]``, normalized over C."""
        centred = x - x.mean(dim=1, keepdim=True)
        variance = (centred * centred).mean(dim=1, keepdim=True)
        out = centred * torch.rsqrt(variance + self.eps)
        if self.weight is None:
            return out
        return out * self.weight[None, :, None, None] + self.bias[None, :, None, None]


def to_map_layer_norm(norm: nn.LayerNorm) -> None:
    """Make a LayerNorm over tokens one over the channels of a map, in place."""
    norm.__class__ = MapLayerNorm


class MapAttention(Attention):
    """Multi-head attention between maps."""

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """``x: [B, C, H, W]``, ``context: [B, D, 1, L]`` → ``[B, C, H, W]``."""
        q = to_heads(self.to_q(x), self.heads)
        q = scaled(q, self.scale)
        k, v = self.keys_values(x if context is None else context, lambda source: to_heads(source, self.heads))
        attended = torch.matmul(self.weights(torch.matmul(q, k.transpose(1, 2))), v)
        out: Tensor = self.to_out[0](from_heads(attended, x.shape))
        return out


class MapStack(TransformerStack):
    """The stack without its flattening."""

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """``x: [B, C, H, W]``, ``context: [B, L, D]`` → ``[B, C, H, W]``."""
        text = to_map(context)
        inner = self.proj_in(self.norm(x))
        for block in self.transformer_blocks:
            inner = block(inner, text)
        out: Tensor = x + self.proj_out(inner)
        return out


class MapSpatialAttention(SpatialAttention):
    """The VAE's attention over all pixels, one head."""

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` → ``[B, C, H, W]``."""
        normed = self.group_norm(x)
        q, k, v = (to_heads(project(normed), 1) for project in (self.to_q, self.to_k, self.to_v))
        q = scaled(q, self.scale)
        scores = torch.matmul(q, k.transpose(1, 2))
        out: Tensor = x + self.to_out[0](from_heads(torch.matmul(scores.softmax(dim=-1), v), x.shape))
        return out


class MapClipAttention(ClipProjections):
    """CLIP's attention on ``[B, C, 1, L]``."""

    def forward(self, hidden_states: Tensor, attention_mask: Tensor) -> tuple[Tensor, None]:
        """As CLIPAttention: output and weights, the latter not kept; ``attention_mask: [1, 1, L, L]`` is added."""
        q, k, v = (to_heads(project(hidden_states), self.heads) for project in (self.q_proj, self.k_proj, self.v_proj))
        q = scaled(q, self.scale)
        scores = torch.matmul(q, k.transpose(1, 2)) + attention_mask[0]
        return self.out_proj(from_heads(torch.matmul(scores.softmax(dim=-1), v), hidden_states.shape)), None


class MapTextEncoder(TextEncoder):
    """The text encoder; its layers see ``[B, hidden, 1, L]``."""

    def forward(self, input_ids: Tensor) -> Tensor:
        """``[B, L]`` token ids → ``[B, L, hidden]``."""
        length = input_ids.shape[1]
        hidden = to_map(self.embeddings(input_ids=input_ids))
        hidden = self.encoder(inputs_embeds=hidden, attention_mask=self.mask[:, :, :length, :length]).last_hidden_state
        out: Tensor = self.final_layer_norm(hidden)
        return out.permute(0, 2, 3, 1)[:, 0]
