"""The timestep of one-step generation → constants in the weights.

    h = conv1(x) + time_emb_proj(silu(emb))          →  conv1's bias
    norm(h)·(1 + scale) + shift                      →  the norm's gamma and beta
    conv_dw(x) + shift, conv_pw1(h) + shift          →  conv_dw's and conv_pw1's bias
    time_embedding(timestep)                         →  removed, with the input ``timestep``

Stable Diffusion XL adds pooled text and picture sizes to its time embedding, which are inputs:

    time_embedding(timestep) + add_embedding.linear_2(x)  →  linear_2's bias

Valid only for the one timestep of the checkpoint's schedule; sampling in many steps needs the original.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from md_export.errors import RewriteError
from md_export.models.controlnet import MDControlNet
from md_export.models.layers import ResnetBlock, SepConvBlock
from md_export.models.unet import DownPath, MDUNet
from md_export.rewrites.adopt import CONTROLNET_MODEL, UNET, type_name
from md_export.spec.sampler import OneStep

# Fields of the UNet's config that add more than the timestep to its embedding.
_MORE: Final = ("class_embed_type", "num_class_embeds")


class NoEmbedding(nn.Module):
    """Placeholder for layers that embed the timestep; the layers that read the embedding have it in their weights."""

    def forward(self, x: Tensor, *_: object) -> Tensor:
        """Return ``x``."""
        return x


class ZeroEmbedding(NoEmbedding):
    """Placeholder for an embedding that another one is added to."""

    def forward(self, x: Tensor, *_: object) -> Tensor:
        """``[B]`` → ``[B, 1]``."""
        return x[:, None]


def embed(unet: Any, timestep: int) -> Tensor:
    """Return the time embedding that every ResNet block gets, ``[1, dim]``.

    Raises:
        RewriteError: the UNet embeds more than the timestep.
    """
    added = [name for name in _MORE if getattr(unet.config, name, None) is not None]
    if added:
        raise RewriteError(
            f"the UNet adds values that are not constant to its time embedding ({', '.join(added)}). "
            "Remove fold_timestep from the recipe"
        )
    embedding: Tensor = unet.time_embedding(unet.time_proj(torch.tensor([float(timestep)])))
    # A ControlNet has no such field.
    act = getattr(unet, "time_embed_act", None)
    return embedding if act is None else act(embedding)


def forget_timestep(unet: Any) -> None:
    """Remove ``timestep`` from the call: ``unet(sample, encoder_hidden_states)``, plus a ControlNet's condition."""
    unet.time_proj = NoEmbedding()
    unet.time_embedding = ZeroEmbedding() if adds_text(unet) else NoEmbedding()
    unet.register_buffer("nothing", torch.zeros(1), persistent=False)
    unet.register_forward_pre_hook(_without_timestep, with_kwargs=True)


def adds_text(unet: Any) -> bool:
    """Return whether it is a Stable Diffusion XL UNet, which adds pooled text and picture sizes to the embedding."""
    return getattr(unet.config, "addition_embed_type", None) == "text_time"


def is_fixed(unet: nn.Module) -> bool:
    """Return whether :func:`forget_timestep` changed it."""
    return isinstance(getattr(unet, "time_embedding", None), NoEmbedding)


def _without_timestep(unet: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[()], dict[str, Any]]:
    names = ("sample", "encoder_hidden_states", "controlnet_cond")
    return (), dict(zip(names, args, strict=False)) | kwargs | {"timestep": unet.nothing}


# Principle: compute constants once, here in float32. Half precision is too coarse for the sine and cosine of 999
# radians, and float32 ops do not run on the Neural Engine (coremltools guide, "Typed Execution").


class TimelessSepConvBlock(SepConvBlock):
    """A separable convolution block with the time embedding in its norm and biases."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:  # noqa: ARG002 (the block's signature)
        """``[B, c_in, H, W]`` → ``[B, c_out, H, W]``; ``emb`` is not used."""
        h = self.conv_pw2(F.silu(self.conv_pw1(self.norm(self.conv_dw(x)))))
        out: Tensor = h + (x if self.conv_shortcut is None else self.conv_shortcut(x))
        return out


class OneStepUNet(MDUNet):
    """The denoiser at one timestep."""

    nothing: Tensor

    # override: the rewrite removes the timestep.
    def forward(  # type: ignore[override]
        self, sample: Tensor, encoder_hidden_states: Tensor, *residuals: Tensor
    ) -> Tensor:
        """Compute :meth:`MDUNet.forward` at the folded timestep."""
        return super().forward(sample, self.nothing, encoder_hidden_states, *residuals)


class OneStepControlNet(MDControlNet):
    """A ControlNet at one timestep."""

    nothing: Tensor

    def forward(  # type: ignore[override]
        self, sample: Tensor, encoder_hidden_states: Tensor, condition: Tensor
    ) -> tuple[Tensor, ...]:
        """Compute :meth:`MDControlNet.forward` at the folded timestep."""
        return super().forward(sample, self.nothing, encoder_hidden_states, condition)


_OF_ONE_STEP: Final[Mapping[type[nn.Module], type[DownPath]]] = {MDUNet: OneStepUNet, MDControlNet: OneStepControlNet}


@torch.no_grad()
def fold_timestep(module: nn.Module, one_step: OneStep) -> int:
    """Fold ``one_step.timestep`` in place; return the number of time projections folded.

    Raises:
        RewriteError: an earlier rewrite changed the UNet's inputs or outputs.
    """
    if type_name(module) in (UNET, CONTROLNET_MODEL) and not is_fixed(module):
        unet: Any = module
        embedding = embed(unet, one_step.timestep)
        if adds_text(unet):
            _add_to_bias(unet.add_embedding.linear_2, embedding[0])
        fired = 1 if adds_text(unet) else _fold_all(module, embedding)
        forget_timestep(module)
        return fired
    if not isinstance(module, DownPath) or isinstance(module, (OneStepUNet, OneStepControlNet)):
        return 0
    if hasattr(module, "x0"):
        raise RewriteError("fold_timestep must come before fold_x0; exchange them in the recipe")
    fired = _fold_all(module, module.time_embedding(torch.tensor([float(one_step.timestep)])))
    module.time_embedding = cast(nn.Module, nn.Identity())  # type: ignore[assignment]
    module.register_buffer("nothing", torch.zeros(1), persistent=False)
    module.__class__ = _OF_ONE_STEP[type(module)]
    return fired


def count_one_step(module: nn.Module) -> int:
    """Return 1 if the timestep is already folded, else 0."""
    return int(isinstance(module, (OneStepUNet, OneStepControlNet)) or is_fixed(module))


def _fold_all(unet: nn.Module, embedding: Tensor) -> int:
    """Fold the time ``embedding``, ``[1, dim]``, into each block that reads it; return the number of projections."""
    hidden = F.silu(embedding)
    fired = 0
    for block in unet.modules():
        if isinstance(block, (ResnetBlock, SepConvBlock)) and block.time_emb_proj is not None:
            _fold(block, block.time_emb_proj(hidden)[0])
            fired += 1
    return fired


def _fold(block: ResnetBlock | SepConvBlock, shift: Tensor) -> None:
    if isinstance(block, ResnetBlock):
        _add_to_bias(block.conv1, shift)
        block.time_emb_proj = None
        return
    if block.time == "scale_shift":
        _scale_and_shift(block.norm, *shift.chunk(2))
    else:
        _add_to_bias(block.conv_dw if block.time == "after_dw" else block.conv_pw1, shift)
    del block.time_emb_proj
    block.__class__ = TimelessSepConvBlock


def _add_to_bias(conv: nn.Conv2d | nn.Linear, shift: Tensor) -> None:
    # A new tensor, because the checkpoint's may be mapped read-only from its file.
    conv.bias = nn.Parameter(shift if conv.bias is None else conv.bias + shift, requires_grad=False)


def _scale_and_shift(norm: nn.GroupNorm, scale: Tensor, shift: Tensor) -> None:
    norm.bias = nn.Parameter(norm.bias * (1 + scale) + shift, requires_grad=False)
    norm.weight = nn.Parameter(norm.weight * (1 + scale), requires_grad=False)
