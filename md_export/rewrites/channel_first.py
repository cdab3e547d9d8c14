"""Substitutes that compute on ``[B, C, 1, S]`` what the originals compute on ``[B, S, C]``.

Each is a subclass that an original becomes in place, or holds the original's own children under their names:
module paths and parameters stay what they were.
"""

# Principle, for the whole file: the Neural Engine wants [B, C, 1, S] with the sequence last (64-byte alignment
# of the last axis), linears as 1×1 convolutions and few memory copies. Source: Apple, "Deploying Transformers on
# the Apple Neural Engine" (machinelearning.apple.com/research/neural-engine-transformers), principles 1 and 3.

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from md_export.models.layers import Attention
from md_export.models.text_encoder import TextEncoder
from md_export.models.unet import TransformerStack
from md_export.models.vae import SpatialAttention
from md_export.rewrites.token_forms import ClipProjections, scaled

# Scores [B, heads, Lq, Lk] → weights of the same shape.
Weigh = Callable[[Tensor], Tensor]


def to_channels(tokens: Tensor) -> Tensor:
    """``[B, S, C]`` → ``[B, C, 1, S]``."""
    return tokens.transpose(1, 2)[:, :, None]


def to_tokens(channels: Tensor) -> Tensor:
    """``[B, C, 1, S]`` → ``[B, S, C]``."""
    return channels[:, :, 0].transpose(1, 2)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """``[B, C, 1, S]`` → ``[B, heads, C/heads, S]``: a reshape, no copy."""
    batch, channels, _, length = x.shape
    return x.reshape(batch, heads, channels // heads, length)


def attend(q: Tensor, k: Tensor, v: Tensor, weigh: Weigh) -> Tensor:
    """``[B, heads, d, Lq]`` and ``[B, heads, d, Lk]`` → ``[B, heads·d, 1, Lq]``.

    Both transposes are of a product's operand: matmul's own flags in a Core ML program.
    """
    weights = weigh(torch.matmul(q.transpose(-1, -2), k))
    out = torch.matmul(v, weights.transpose(-1, -2))
    return out.reshape(q.shape[0], -1, 1, q.shape[-1])


class ChannelFirstAttention(Attention):
    """Multi-head attention whose heads are reshapes of the channels."""

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """``x: [B, C, 1, S]``, ``context: [B, D, 1, L]`` → ``[B, C, 1, S]``."""
        q = split_heads(self.to_q(x), self.heads)
        # After the reshape: right behind the convolution, coremltools would make a new, nameless weight of it.
        q = scaled(q, self.scale)
        k, v = self.keys_values(x if context is None else context, lambda source: split_heads(source, self.heads))
        out: Tensor = self.to_out[0](attend(q, k, v, self.weights))
        return out


class ChannelFirstStack(TransformerStack):
    """The stack, ``[B, C, 1, H·W]`` inside.

    Every stack transposes the text itself, so that it stays a drop-in; in a Core ML program the equal
    transposes become one.
    """

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """``x: [B, C, H, W]``, ``context: [B, L, D]`` → ``[B, C, H, W]``."""
        batch, channels, height, width = x.shape
        text = to_channels(context)
        tokens = self.proj_in(self.norm(x.reshape(batch, channels, 1, height * width)))
        for block in self.transformer_blocks:
            tokens = block(tokens, text)
        out: Tensor = x + self.proj_out(tokens).reshape(batch, channels, height, width)
        return out


class ChannelFirstSpatialAttention(SpatialAttention):
    """The VAE's attention over all pixels, one head."""

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` → ``[B, C, H, W]``."""
        batch, channels, height, width = x.shape
        tokens = self.group_norm(x.reshape(batch, channels, 1, height * width))
        q, k, v = (split_heads(project(tokens), 1) for project in (self.to_q, self.to_k, self.to_v))
        q = scaled(q, self.scale)
        out = attend(q, k, v, lambda scores: scores.softmax(dim=-1))
        merged: Tensor = x + self.to_out[0](out).reshape(batch, channels, height, width)
        return merged


class ChannelFirstClipAttention(ClipProjections):
    """CLIP's attention on ``[B, C, 1, L]``."""

    def forward(self, hidden_states: Tensor, attention_mask: Tensor) -> tuple[Tensor, None]:
        """As CLIPAttention: output and weights, the latter not kept; the mask is added to the scores."""
        q, k, v = (
            split_heads(project(hidden_states), self.heads) for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        q = scaled(q, self.scale)
        out = attend(q, k, v, lambda scores: (scores + attention_mask).softmax(dim=-1))
        return self.out_proj(out), None


class ChannelFirstTextEncoder(TextEncoder):
    """The text encoder; its layers see ``[B, hidden, 1, L]``."""

    def forward(self, input_ids: Tensor) -> Tensor:
        """``[B, L]`` token ids → ``[B, L, hidden]``."""
        length = input_ids.shape[1]
        hidden = to_channels(self.embeddings(input_ids=input_ids))
        hidden = self.encoder(inputs_embeds=hidden, attention_mask=self.mask[:, :, :length, :length]).last_hidden_state
        return to_tokens(self.final_layer_norm(hidden))
