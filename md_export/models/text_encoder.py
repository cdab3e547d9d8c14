"""The CLIP text encoder: transformers' own module tree, driven without its mask and pooling helpers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from md_export.errors import ConfigError
from md_export.system.quiet_imports import import_quietly

# Finite, so that half precision never sees an infinity; exp(-1e4) is 0 in float32 as in float16.
MASKED = -1e4


class TextEncoder(nn.Module):
    """``CLIPTextModel`` up to its last hidden state, causal mask as a constant.

    The pooled output is left out: the UNet attends to ``last_hidden_state`` only.
    """

    mask: Tensor

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        clip = import_quietly("transformers.models.clip.modeling_clip")
        try:
            clip_config = clip.CLIPTextConfig(**{k: v for k, v in config.items() if k not in _NOT_FIELDS})
        except (TypeError, ValueError) as error:
            raise ConfigError(f"text_encoder/config.json is no CLIPTextConfig: {error}") from error
        clip_config._attn_implementation = "eager"
        model = clip.CLIPTextModel(clip_config)
        self.length = int(clip_config.max_position_embeddings)
        self.embeddings = model.embeddings
        self.encoder = model.encoder
        self.final_layer_norm = model.final_layer_norm
        mask = torch.full((self.length, self.length), MASKED).triu(1)[None, None]
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        """``[B, 77]`` token ids (int32 or int64) → ``[B, 77, hidden]``."""
        length = input_ids.shape[1]
        hidden = self.embeddings(input_ids=input_ids)
        hidden = self.encoder(inputs_embeds=hidden, attention_mask=self.mask[:, :, :length, :length])
        out: Tensor = self.final_layer_norm(hidden.last_hidden_state)
        return out


_NOT_FIELDS = frozenset(
    {"architectures", "model_type", "torch_dtype", "dtype", "transformers_version", "_name_or_path"}
)
