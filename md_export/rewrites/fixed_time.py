"""UNet2DConditionModel at one timestep: its time embedding as a constant, its call without ``timestep``."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor, nn

from md_export.errors import RewriteError

# Fields of its config with which it embeds more than the timestep.
_MORE: Final = ("class_embed_type", "num_class_embeds", "addition_embed_type", "time_cond_proj_dim")


class NoEmbedding(nn.Module):
    """In place of what embeds the timestep; all that read the embedding hold it in their weights."""

    def forward(self, x: Tensor, *_: object) -> Tensor:
        """``x`` as it is."""
        return x


def embed(unet: Any, timestep: int) -> Tensor:
    """What every ResNet block gets, ``[1, dim]``.

    Raises:
        RewriteError: more than the timestep is embedded.
    """
    added = [name for name in _MORE if getattr(unet.config, name, None) is not None]
    if added:
        raise RewriteError(
            f"the UNet adds to its time embedding what is not constant ({', '.join(added)}). "
            "Take fold_timestep out of the recipe"
        )
    embedding: Tensor = unet.time_embedding(unet.time_proj(torch.tensor([float(timestep)])))
    # A ControlNet has no such field.
    act = getattr(unet, "time_embed_act", None)
    return embedding if act is None else act(embedding)


def forget_timestep(unet: Any) -> None:
    """Called as ``unet(sample, encoder_hidden_states)`` from now on, a ControlNet with the condition third."""
    unet.time_proj = NoEmbedding()
    unet.time_embedding = NoEmbedding()
    unet.register_buffer("nothing", torch.zeros(1), persistent=False)
    unet.register_forward_pre_hook(_without_timestep, with_kwargs=True)


def is_fixed(unet: nn.Module) -> bool:
    """Whether :func:`forget_timestep` changed it."""
    return isinstance(getattr(unet, "time_embedding", None), NoEmbedding)


def _without_timestep(unet: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[()], dict[str, Any]]:
    names = ("sample", "encoder_hidden_states", "controlnet_cond")
    return (), dict(zip(names, args, strict=False)) | kwargs | {"timestep": unet.nothing}
