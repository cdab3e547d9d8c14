"""DiT's transformer (arXiv 2212.09748): the same function as diffusers' DiTTransformer2DModel.

As in diffusers, each block has an embedding of the timestep and of the class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from md_export.models.patch_config import PLAIN, PatchConfig
from md_export.models.patch_transformer import (
    Cells,
    Conditioning,
    Modulation,
    PatchBlock,
    PatchTransformer,
    VectorLinear,
    plain_norm,
)


@dataclass(frozen=True)
class DiTConfig(PatchConfig):
    """``transformer/config.json`` of DiTTransformer2DModel; ``num_embeds_ada_norm`` is the number of classes."""

    REQUIRED: ClassVar[Mapping[str, Any]] = {
        **PLAIN,
        "norm_type": "ada_norm_zero",
        "cross_attention_dim": None,
        "caption_channels": None,
    }

    norm_eps: float = 1e-5


class LabelEmbedding(nn.Module):
    """A table with a row for each class, and a last row for no class."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(classes + 1, width)

    def forward(self, labels: Tensor) -> Tensor:
        out: Tensor = self.embedding_table(labels)
        return out


class DiTBlock(PatchBlock):
    """A block with a separate conditioning."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__(config)
        width = config.width
        self.norm1 = Modulation(width, Conditioning(width, 1, LabelEmbedding(config.num_embeds_ada_norm, width)))
        self.norm = plain_norm(width)
        self.norm3 = plain_norm(width, config.norm_eps)

    def forward(self, x: Tensor, timestep: Tensor, labels: Tensor) -> Tensor:
        """Tokens, ``[1]``, ``[B]`` → tokens."""
        by = self.norm1(self.norm1.emb(timestep, labels)).unbind(1)
        x = self.gated(x, self.attn1, self.norm, by[:3])
        return self.gated(x, self.ff, self.norm3, by[3:])


class DiT(PatchTransformer):
    """``transformer/`` of a DiT checkpoint, for latents of ``cells``."""

    def __init__(self, config: DiTConfig, cells: Cells) -> None:
        super().__init__(config, cells)
        self.transformer_blocks = nn.ModuleList([DiTBlock(config) for _ in range(config.num_layers)])
        self.proj_out_1 = VectorLinear(config.width, 2 * config.width)
        self.proj_out_2 = nn.Linear(config.width, self.outputs)

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor) -> Tensor:
        """``[B, C, H, W]``, ``[1]``, ``[B]`` int → noise ``[B, C, H, W]``; the label after the last class: no class."""
        x = self.layout.enter(self.pos_embed(sample))
        for block in self.transformer_blocks:
            x = block(x, timestep, class_labels)
        first: Any = self.transformer_blocks[0]
        shift, scale = self.proj_out_1(F.silu(first.norm1.emb(timestep, class_labels))).chunk(2, dim=1)
        return self.made(self.proj_out_2(self.modulated(self.norm_out(x), shift, scale)))
