"""The layers of CLIP's text model, under the names that transformers' CLIPTextModel has for them.

They compute the same operations in the same order, and random weights are drawn as there (``_init_weights`` of
``CLIPPreTrainedModel``); tests hold both against transformers, which takes longer to import than a small model to
export.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from md_export.errors import ConfigError

_STD: Final = 0.02


@dataclass(frozen=True)
class ClipConfig:
    """Fields of ``CLIPTextConfig`` that decide what is computed; the defaults are those of transformers."""

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    projection_dim: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    eos_token_id: int = 49407

    @classmethod
    def of(cls, config: Mapping[str, Any], folder: str) -> ClipConfig:
        """Return the known fields of ``folder/config.json``.

        Raises:
            ConfigError: the heads do not divide the width, or the activation is unknown.
        """
        found = cls(**{field.name: config[field.name] for field in fields(cls) if field.name in config})
        if found.hidden_size % found.num_attention_heads:
            raise ConfigError(
                f"{folder}/config.json: hidden_size {found.hidden_size} is no multiple of num_attention_heads "
                f"{found.num_attention_heads}"
            )
        if found.hidden_act not in tuple(_ACTIVATIONS):
            raise ConfigError(
                f"{folder}/config.json: hidden_act {found.hidden_act!r:.40} is not supported, only "
                f"{' and '.join(_ACTIVATIONS)}"
            )
        return found


class QuickGelu(nn.Module):
    """GELU, approximated by a sigmoid."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


_ACTIVATIONS: Final[Mapping[str, type[nn.Module]]] = {"quick_gelu": QuickGelu, "gelu": nn.GELU}


class ClipEmbeddings(nn.Module):
    """Embeddings of tokens and of their places, added."""

    position_ids: Tensor

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        places = torch.arange(config.max_position_embeddings).expand((1, -1))
        self.register_buffer("position_ids", places, persistent=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        """``[B, L]`` → ``[B, L, hidden]``."""
        places = self.position_ids[:, : input_ids.shape[-1]]
        embedded: Tensor = self.token_embedding(input_ids) + self.position_embedding(places)
        return embedded


class ClipAttention(nn.Module):
    """Self-attention with an added mask."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.head_dim = width // self.num_heads
        self.scale = self.head_dim**-0.5
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor) -> tuple[Tensor, None]:
        """``[B, L, hidden]`` → the same, and no weights; ``attention_mask``: ``[1, 1, L, L]``."""
        shape = hidden_states.shape[:-1]
        projected = [project(hidden_states) for project in (self.q_proj, self.k_proj, self.v_proj)]
        q, k, v = (one.view(*shape, -1, self.head_dim).transpose(1, 2) for one in projected)
        scores = torch.matmul(q, k.transpose(-1, -2)) * self.scale + attention_mask
        weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
        attended = torch.matmul(weights, v).transpose(1, 2).contiguous()
        return self.out_proj(attended.reshape(*shape, -1).contiguous()), None


class ClipMlp(nn.Module):
    """Linear, activation, linear."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.activation_fn = _ACTIVATIONS[config.hidden_act]()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.activation_fn(self.fc1(hidden_states)))
        return out


class ClipLayer(nn.Module):
    """Attention and feed-forward, each after a norm and with a residual."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.self_attn = ClipAttention(config)
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = ClipMlp(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor) -> Tensor:
        """``[B, L, hidden]`` → the same."""
        hidden: Tensor = hidden_states + self.self_attn(self.layer_norm1(hidden_states), attention_mask)[0]
        out: Tensor = hidden + self.mlp(self.layer_norm2(hidden))
        return out


class ClipLayers(nn.Module):
    """Holds the layers; who computes takes one after another."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(ClipLayer(config) for _ in range(config.num_hidden_layers))


class ClipText(nn.Module):
    """Embeddings, layers and the final norm, with random weights."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.embeddings = ClipEmbeddings(config)
        self.encoder = ClipLayers(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        _draw(self, config.num_hidden_layers)


def _draw(module: nn.Module, layers: int) -> None:
    """Draw random weights; embeddings and linear layers are drawn twice, as transformers does."""
    for child in module.children():
        _draw(child, layers)
    deviations: list[tuple[Any, float]] = []
    match module:
        case nn.Linear() | nn.Embedding():
            deviations = [(module, _STD)]
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        case ClipEmbeddings():
            deviations = [(module.token_embedding, _STD), (module.position_embedding, _STD)]
        case ClipAttention():
            out = module.out_proj.out_features**-0.5
            first = [module.q_proj, module.k_proj, module.v_proj]
            deviations = [*((one, out * (2 * layers) ** -0.5) for one in first), (module.out_proj, out)]
        case ClipMlp():
            width = module.fc1.in_features
            deviations = [(module.fc1, (2 * width) ** -0.5), (module.fc2, width**-0.5 * (2 * layers) ** -0.5)]
    for layer, deviation in deviations:
        nn.init.normal_(layer.weight, std=deviation)
