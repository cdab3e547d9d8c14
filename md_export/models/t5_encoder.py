"""T5's encoder: the same function as transformers' T5EncoderModel, with its state dict.

In the large T5, activations of the residual stream exceed float16's range (transformers' issue 9295), so transformers
keeps ``wo`` in float32. Here the stream has 1/64 of each value. The function is the same, because only norms read the
stream, they do not depend on its scale, and 64 is a power of two.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from md_export.errors import ConfigError
from md_export.models.text_encoder import MASKED

T5_CLASS: Final = "T5EncoderModel"
# Token ids of a prompt, by diffusers' class of the pipeline.
LENGTHS: Final[Mapping[str, int]] = {"PixArtAlphaPipeline": 120, "PixArtSigmaPipeline": 300}
_FEED_FORWARDS: Final = ("gated-gelu", "relu")
# Scale of the residual stream; smallest divisor of a token's channels in a norm.
SHARE: Final = 2.0**-6
_LEAST: Final = 2.0**-12


@dataclass(frozen=True)
class T5Config:
    """``text_encoder/config.json`` of T5EncoderModel, with transformers' defaults.

    ``length``: number of token ids of a prompt; it depends on the pipeline's class.
    """

    IGNORED: ClassVar[tuple[str, ...]] = ()
    REQUIRED: ClassVar[Mapping[str, Any]] = {}

    vocab_size: int = 32128
    d_model: int = 512
    d_kv: int = 64
    d_ff: int = 2048
    num_layers: int = 6
    num_heads: int = 8
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    feed_forward_proj: str = "relu"
    length: int = 120

    def __post_init__(self) -> None:
        if self.feed_forward_proj not in _FEED_FORWARDS:
            raise ConfigError(
                f"feed_forward_proj={self.feed_forward_proj!r} is not supported; use {' or '.join(_FEED_FORWARDS)}"
            )
        if not 4 <= self.relative_attention_num_buckets < 4 * self.relative_attention_max_distance:
            raise ConfigError(
                f"relative_attention_num_buckets={self.relative_attention_num_buckets} must be from 4 to below 4 times "
                f"relative_attention_max_distance={self.relative_attention_max_distance}"
            )


def buckets(length: int, count: int, most: int) -> Tensor:
    """Return the bucket ``[L, L]`` of each key's distance from each query (arXiv 1910.10683, section 2.1).

    Half of the ``count`` buckets are for keys before the query, half for keys after it. In each half, the first half
    are for single distances, and the others widen up to ``most``.
    """
    half, exact = count // 2, count // 4
    distance = torch.arange(length)[None] - torch.arange(length)[:, None]
    away = distance.abs()
    wide = torch.log(away.clamp(min=1).float() / exact) / math.log(most / exact) * (half - exact)
    far = (exact + wide.long()).clamp(max=half - 1)
    return torch.where(away < exact, away, far) + half * (distance > 0)


class T5Norm(nn.Module):
    """Root mean square norm of a residual stream that is scaled by :data:`SHARE`.

    Channels are first divided by the token's largest one, because their squares would exceed float16's range.
    """

    AXIS: ClassVar[int] = -1

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.root = eps**0.5 * SHARE

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalized values, in the same shape; channels are along ``AXIS``."""
        inverse = 1.0 / (x.abs().amax(dim=self.AXIS, keepdim=True) + _LEAST)
        near, root = x * inverse, inverse * self.root
        normed = near * torch.rsqrt((near * near).mean(dim=self.AXIS, keepdim=True) + root * root)
        return normed * (self.weight if self.AXIS == -1 else self.weight[:, None, None])


class T5Attention(nn.Module):
    """Self-attention without a scale; ``bias [·, heads, L, L]`` is added to the scores."""

    def __init__(self, config: T5Config, has_bias: bool) -> None:
        super().__init__()
        inner = config.num_heads * config.d_kv
        self.heads = config.num_heads
        self.q, self.k, self.v = (nn.Linear(config.d_model, inner, bias=False) for _ in range(3))
        self.o = nn.Linear(inner, config.d_model, bias=False)
        self.relative_attention_bias = (
            nn.Embedding(config.relative_attention_num_buckets, config.num_heads) if has_bias else None
        )

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """``[B, L, C]`` → ``[B, L, C]`` for the residual stream."""
        q, k, v = (self._split(project(x)) for project in (self.q, self.k, self.v))
        weights = (torch.matmul(q, k.transpose(-1, -2)) + bias).softmax(dim=-1)
        out: Tensor = self.o((torch.matmul(weights, v) * SHARE).transpose(1, 2).flatten(2))
        return out


class T5FeedForward(nn.Module):
    """Linear, GELU times linear, linear; or, as in the first T5, linear, relu, linear."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.gated = config.feed_forward_proj == "gated-gelu"
        if self.gated:
            self.wi_0, self.wi_1 = (nn.Linear(config.d_model, config.d_ff, bias=False) for _ in range(2))
        else:
            self.wi = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.wo = nn.Linear(config.d_ff, config.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens → tokens for the residual stream."""
        # Scale before the product with the gate, which may also exceed float16's range.
        hidden = (F.gelu(self.wi_0(x), approximate="tanh") if self.gated else F.relu(self.wi(x))) * SHARE
        out: Tensor = self.wo(hidden * self.wi_1(x) if self.gated else hidden)
        return out


class T5AttentionLayer(nn.Module):
    """Norm, attention, residual."""

    def __init__(self, config: T5Config, has_bias: bool) -> None:
        super().__init__()
        self.SelfAttention = T5Attention(config, has_bias)
        self.layer_norm = T5Norm(config.d_model, config.layer_norm_epsilon)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """Tokens → tokens."""
        out: Tensor = x + self.SelfAttention(self.layer_norm(x), bias)
        return out


class T5FeedForwardLayer(nn.Module):
    """Norm, feed-forward, residual."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.DenseReluDense = T5FeedForward(config)
        self.layer_norm = T5Norm(config.d_model, config.layer_norm_epsilon)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens → tokens."""
        out: Tensor = x + self.DenseReluDense(self.layer_norm(x))
        return out


class T5Block(nn.Module):
    """Self-attention, then feed-forward."""

    def __init__(self, config: T5Config, has_bias: bool) -> None:
        super().__init__()
        self.layer = nn.ModuleList([T5AttentionLayer(config, has_bias), T5FeedForwardLayer(config)])

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """Tokens → tokens."""
        out: Tensor = self.layer[1](self.layer[0](x, bias))
        return out


class T5Stack(nn.Module):
    """All blocks, and the last norm."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.block = nn.ModuleList([T5Block(config, place == 0) for place in range(config.num_layers)])
        self.final_layer_norm = T5Norm(config.d_model, config.layer_norm_epsilon)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """Tokens → tokens."""
        for block in self.block:
            x = block(x, bias)
        out: Tensor = self.final_layer_norm(x)
        return out


class T5Encoder(nn.Module):
    """``text_encoder/`` of a checkpoint with T5.

    When weights are loaded, the biases of all distances become a constant, ``position_bias [1, heads, L, L]``, and the
    table that they come from is removed.
    """

    position_bias: Tensor | None

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.shared = nn.Embedding(config.vocab_size, config.d_model)
        self.encoder = T5Stack(config)
        self.heads = config.num_heads
        self.buckets = buckets(
            config.length, config.relative_attention_num_buckets, config.relative_attention_max_distance
        )
        self.register_buffer("position_bias", None, persistent=False)
        self.register_load_state_dict_post_hook(_fold_bias)  # type: ignore[no-untyped-call]

    def bias(self) -> Tensor:
        """Return the bias that is added to all scores, ``[1, heads, L, L]``."""
        if self.position_bias is not None:
            return self.position_bias
        rows: Tensor = _first_attention(self).relative_attention_bias(self.buckets)
        return rows.permute(2, 0, 1)[None]

    def enter(self, tokens: Tensor) -> Tensor:
        """Return tokens ``[B, L, C]`` in the layout of the blocks, which a rewrite may change."""
        return tokens

    def leave(self, tokens: Tensor) -> Tensor:
        """Return the inverse of :meth:`enter`."""
        return tokens

    def added(self, mask: Tensor) -> Tensor:
        """Return the sum of bias and mask ``[B, L]`` that is added to the scores, ``[B, heads, L, L]``."""
        return self.bias().to(mask.dtype) + ((1 - mask) * MASKED)[:, None, None]

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """``[B, L]`` token ids, ``[B, L]`` 1 for tokens and 0 for padding → ``[B, L, d_model]``."""
        hidden = self.shared(input_ids) * SHARE
        return self.leave(self.encoder(self.enter(hidden), self.added(attention_mask)))


def _first_attention(encoder: T5Encoder) -> Any:
    first: Any = encoder.encoder.block[0]
    return first.layer[0].SelfAttention


@torch.no_grad()
def _fold_bias(encoder: Any, _keys: object) -> None:
    attention = _first_attention(encoder)
    if attention.relative_attention_bias is not None:
        # Persistent, so that float16 artifacts store it as a weight.
        encoder.register_buffer("position_bias", encoder.bias().contiguous())
        attention.relative_attention_bias = None
