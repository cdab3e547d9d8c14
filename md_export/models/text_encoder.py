"""CLIP's text encoders: what the families read of CLIP's layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from md_export.errors import ConfigError
from md_export.models.clip import ClipConfig, ClipText

# Finite, to avoid infinities in half precision; exp(-1e4) is 0 in float32 and in float16.
MASKED = -1e4
# Stable Diffusion uses the last layer's output after the final norm. SDXL uses the output of the layer before it,
# without a norm, and also the second encoder's projected vector at the end of the text.
Reading = Literal["last", "penultimate", "penultimate_and_pooled"]
# eos_token_id in configs from before transformers 4.31; the end token is then the one with the highest id.
_OLD_END: Final = 2


class TextEncoder(nn.Module):
    """``CLIPTextModel`` or ``CLIPTextModelWithProjection`` with the causal mask as a constant.

    Layers and norms that ``reading`` does not need are left out. ``skip``: number of layers, before the last two, that
    the hidden states leave out although the pooled vector needs all.
    """

    mask: Tensor
    places: Tensor

    def __init__(
        self, config: Mapping[str, Any], reading: Reading = "last", folder: str = "text_encoder", skip: int = 0
    ) -> None:
        super().__init__()
        clip_config = ClipConfig.of({**config, "num_hidden_layers": layers_of(config, reading)}, folder)
        model = ClipText(clip_config)
        self.length = int(clip_config.max_position_embeddings)
        self.skip = skip
        if skip >= clip_config.num_hidden_layers:
            raise ConfigError(f"{folder}/config.json: num_hidden_layers is too low for a clip_skip of {skip}")
        self.embeddings = model.embeddings
        self.encoder = model.encoder
        self.final_layer_norm = None if reading == "penultimate" else model.final_layer_norm
        self.text_projection: nn.Module | None = None
        mask = torch.full((self.length, self.length), MASKED).triu(1)[None, None]
        self.register_buffer("mask", mask, persistent=False)
        if reading == "penultimate_and_pooled":
            self.text_projection = nn.Linear(clip_config.hidden_size, clip_config.projection_dim, bias=False)
            end = clip_config.eos_token_id
            self.end = int(clip_config.vocab_size - 1 if end == _OLD_END else end)
            self.register_buffer("places", torch.arange(self.length, 0, -1, dtype=torch.float32), persistent=False)

    def forward(self, input_ids: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """``[B, 77]`` token ids (int32 or int64) → ``[B, 77, hidden]``, for some readings with ``[B, projection]``."""
        length = input_ids.shape[1]
        states, mask = [self.enter(self.embeddings(input_ids))], self.mask[:, :, :length, :length]
        for layer in self.encoder.layers:
            states.append(layer(states[-1], mask))
        if self.text_projection is not None:
            return self.leave(states[-2 - self.skip]), self._pooled(input_ids, states[-1])
        return self.leave(states[-1] if self.final_layer_norm is None else self.final_layer_norm(states[-1]))

    def _pooled(self, input_ids: Tensor, hidden: Tensor) -> Tensor:
        """Return ``[B, projection]`` at the first end token; padding may have the same id."""
        assert self.text_projection is not None  # noqa: S101 (only called with it)
        assert self.final_layer_norm is not None  # noqa: S101 (exists with a projection)
        # The first position has the highest number. Plain arithmetic, because GPU engines do not support a lookup by a
        # computed index.
        found = (input_ids == self.end).to(self.places.dtype) * self.places[: input_ids.shape[1]]
        chosen = F.relu(1.0 - (found.amax(dim=1, keepdim=True) - found))
        tokens = self.leave(self.final_layer_norm(hidden))
        last = torch.matmul(chosen[:, None].to(tokens.dtype), tokens)
        return self.leave(self.text_projection(self.enter(last)))[:, 0]

    def enter(self, tokens: Tensor) -> Tensor:
        """Return tokens ``[B, L, C]`` in the layout of the layers, which a rewrite may change."""
        return tokens

    def leave(self, hidden: Tensor) -> Tensor:
        """Return the inverse of :meth:`enter`."""
        return hidden


def layers_of(config: Mapping[str, Any], reading: Reading) -> int:
    """Return the number of layers that are computed; transformers' default is 12."""
    layers = int(config.get("num_hidden_layers", 12))
    return layers - 1 if reading == "penultimate" else layers


def is_unused(name: str, layers: int, also: tuple[str, ...] = ()) -> bool:
    """Return whether a tensor belongs to a layer after the first ``layers`` or to ``also``, or is not a weight."""
    layer = name.removeprefix("encoder.layers.").partition(".")[0]
    above = name.startswith("encoder.layers.") and layer.isdecimal() and int(layer[:_LONGEST_NUMBER]) >= layers
    return above or name.startswith((*_OTHERS, *also))


_LONGEST_NUMBER: Final = 9
# Tensors that are not used; the last three are in files of the whole CLIP model.
_OTHERS: Final = ("embeddings.position_ids", "logit_scale", "vision_model.", "visual_projection.")
