"""Layers of transformers on patches of a latent, shared by DiT and PixArt.

Module and parameter names are those of diffusers, so that its state dicts load unchanged. The models also predict a
variance in the second half of the output channels; it is removed, because no sampler here uses it.
"""

from __future__ import annotations

import math
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from md_export.models.layers import Attention, Softmax, TimestepEmbedding
from md_export.models.patch_config import PatchConfig

# Channels of the sine and cosine table; default epsilon of norms; number of a block's shifts, scales and gates.
_WAVES: Final = 256
_EPS: Final = 1e-6
MODULATIONS: Final = 6
# Height and width of a latent.
Cells = tuple[int, int]


def embedding_of_time(width: int, shift: int = 0) -> TimestepEmbedding:
    """Return a time embedding with diffusers' frequencies for ``downscale_freq_shift=shift``."""
    embedding, half = TimestepEmbedding(_WAVES, width), _WAVES // 2
    embedding.frequencies = torch.exp(-math.log(10000.0) * torch.arange(half, dtype=torch.float32) / (half - shift))
    return embedding


def positions(config: PatchConfig, cells: Cells) -> Tensor:
    """Return sines and cosines of each patch's position ``[1, width, h, w]``, first for the column, then for the row.

    Latents of other sizes than the trained one have the same range of positions, as in diffusers.
    """
    quarter, trained = config.width // 4, config.sample_size // config.patch_size
    waves = 10000 ** (torch.arange(quarter, dtype=torch.float64)[:, None] / quarter)

    def along(patches: int) -> Tensor:
        angles = torch.arange(patches, dtype=torch.float64) * trained / patches / config.scale / waves
        return torch.cat([angles.sin(), angles.cos()])

    high, wide = (side // config.patch_size for side in cells)
    columns, rows = along(wide)[:, None].expand(-1, high, -1), along(high)[:, :, None].expand(-1, -1, wide)
    return torch.cat([columns, rows])[None].float()


class VectorLinear(nn.Linear):
    """A linear on vectors ``[B, C]``; rewrites of tokens do not change it."""


class GeluProjection(nn.Module):
    """Linear and tanh GELU."""

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, inner)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x), approximate="tanh")


class PlainFeedForward(nn.Module):
    """Linear, GELU, linear; ``net.1`` is an empty slot for diffusers' dropout."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.net = nn.ModuleList([GeluProjection(dim, 4 * dim), nn.Identity(), nn.Linear(4 * dim, dim)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.net:
            x = layer(x)
        return x


class Conditioning(nn.Module):
    """Embedding of the timestep and, in some models, of a class or of the picture's size.

    ``classes``: labels ``[B]`` → ``[B, width]``. ``size``: height, width and aspect ratio of the picture. They are
    constant: when weights are loaded, their embedding is added to the last bias of the time embedding, and the layers
    that computed it are removed.
    """

    size: Tensor | None

    def __init__(self, width: int, shift: int, classes: nn.Module | None = None, size: Tensor | None = None) -> None:
        super().__init__()
        self.timestep_embedder = embedding_of_time(width, shift)
        self.class_embedder = classes
        self.register_buffer("size", size, persistent=False)
        if size is not None:
            self.resolution_embedder = embedding_of_time(width // 3)
            self.aspect_ratio_embedder = embedding_of_time(width // 3)
            self.register_load_state_dict_post_hook(_fold_size)  # type: ignore[no-untyped-call]

    def of_size(self) -> Tensor | None:
        """Return the embedding of the size, ``[1, width]``; None if there is no size, or it is already in the bias."""
        if self.size is None:
            return None
        both = self.resolution_embedder(self.size[:2]), self.aspect_ratio_embedder(self.size[2:])
        return torch.cat(both).reshape(1, -1)

    def forward(self, timestep: Tensor, labels: Tensor | None = None) -> Tensor:
        """``[1]`` and ``[B]`` → ``[B, width]``, or ``[1, width]`` without labels."""
        out: Tensor = self.timestep_embedder(timestep)
        if self.class_embedder is not None:
            out = out + self.class_embedder(labels)
        constant = self.of_size()
        return out if constant is None else out + constant


@torch.no_grad()
def _fold_size(emb: Any, _keys: object) -> None:
    if emb.size is not None:
        last = emb.timestep_embedder.linear_2
        # A new tensor, because the checkpoint's may be mapped read-only from its file.
        last.bias = nn.Parameter(last.bias + emb.of_size()[0], requires_grad=False)
        emb.size = None
        del emb.resolution_embedder, emb.aspect_ratio_embedder


class Modulation(nn.Module):
    """The conditioning, and the linear that computes shifts, scales and gates from it."""

    def __init__(self, width: int, emb: Conditioning) -> None:
        super().__init__()
        self.emb = emb
        self.linear = VectorLinear(width, MODULATIONS * width)

    def forward(self, conditioning: Tensor) -> Tensor:
        """``[B, width]`` → ``[B, 6, width]``."""
        out: Tensor = self.linear(F.silu(conditioning))
        return out.reshape(len(out), MODULATIONS, -1)


class Tokens:
    """Layout of tokens with channels last, ``[B, L, C]``. A rewrite may replace it by another layout."""

    def enter(self, patches: Tensor) -> Tensor:
        """``[B, C, h, w]`` → tokens."""
        return patches.flatten(2).transpose(1, 2)

    def text(self, hidden: Tensor) -> Tensor:
        """``[B, L, D]`` → tokens."""
        return hidden

    def mask(self, added: Tensor, heads: int) -> Tensor:  # noqa: ARG002 (a layout with heads in the batch needs it)
        """Return the mask ``[B, L]`` in the shape that is added to the scores."""
        return added[:, None, None]

    def along(self, vector: Tensor) -> Tensor:
        """Return a vector ``[B, C]`` in the shape that broadcasts over all tokens."""
        return vector[:, None]

    def leave(self, tokens: Tensor, high: int, wide: int) -> Tensor:
        """Tokens → ``[B, h, w, C]``."""
        return tokens.reshape(len(tokens), high, wide, -1)


class PatchModule(nn.Module):
    """Base of modules that compute on tokens in a layout."""

    layout: Tokens

    def __init__(self) -> None:
        super().__init__()
        self.layout = Tokens()

    def modulated(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        """Return ``x·(1 + scale) + shift`` for tokens; shift and scale are ``[B, C]``."""
        return x * (1 + self.layout.along(scale)) + self.layout.along(shift)


class PatchBlock(PatchModule):
    """Self-attention and feed-forward, each after a modulated norm and before a gate."""

    def __init__(self, config: PatchConfig) -> None:
        super().__init__()
        self.attn1 = Attention(config.width, config.attention_head_dim, config.width, Softmax(), bias=True)
        self.ff = PlainFeedForward(config.width)

    def gated(self, x: Tensor, branch: nn.Module, norm: nn.Module, by: tuple[Tensor, ...]) -> Tensor:
        """Return x plus a gated branch; ``by``: shift, scale and gate ``[B, C]``."""
        shift, scale, gate = by
        out: Tensor = x + self.layout.along(gate) * branch(self.modulated(norm(x), shift, scale))
        return out


def plain_norm(width: int, eps: float = _EPS) -> nn.LayerNorm:
    """Return a LayerNorm without gamma and beta."""
    return nn.LayerNorm(width, eps, elementwise_affine=False)


class PatchEmbedding(nn.Module):
    """The convolution from patches to tokens, and the table of positions that is added."""

    table: Tensor

    def __init__(self, config: PatchConfig, cells: Cells) -> None:
        super().__init__()
        self.proj = nn.Conv2d(config.in_channels, config.width, config.patch_size, stride=config.patch_size)
        self.register_buffer("table", positions(config, cells), persistent=False)

    def forward(self, sample: Tensor) -> Tensor:
        """``[B, in_channels, H, W]`` → ``[B, width, h, w]``."""
        patches: Tensor = self.proj(sample)
        return patches + self.table.to(patches.dtype)


class PatchTransformer(PatchModule):
    """First and last layers of both transformers, for latents of ``cells``."""

    def __init__(self, config: PatchConfig, cells: Cells) -> None:
        super().__init__()
        self.patch, self.cells, self.channels = config.patch_size, cells, config.in_channels
        self.outputs = config.patch_size**2 * config.predicted
        self.pos_embed = PatchEmbedding(config, cells)
        self.norm_out = plain_norm(config.width)

    def made(self, patches: Tensor) -> Tensor:
        """Return ``[B, in_channels, H, W]`` of tokens ``[B, outputs, …]``: each token's patch, without the variance."""
        patch = self.patch
        high, wide = (side // patch for side in self.cells)
        last = self.layout.leave(patches, high, wide)
        # Channels are (row, column, channel) of a patch. A reshape moves columns out, then rows, with rank 4 at most.
        rows = [row.reshape(len(last), high, wide * patch, -1) for row in last.chunk(patch, dim=3)]
        woven = torch.cat(rows, dim=2).reshape(len(last), high * patch, wide * patch, -1)
        return woven[..., : self.channels].permute(0, 3, 1, 2)
