"""The timestep of one-step generation → constants in the weights.

    h = conv1(x) + time_emb_proj(silu(emb))          →  conv1's bias
    norm(h)·(1 + scale) + shift                      →  the norm's own gamma and beta
    conv_dw(x) + shift, conv_pw1(h) + shift          →  conv_dw's and conv_pw1's bias
    time_embedding(timestep)                         →  nothing; the input ``timestep`` goes

Right for one timestep only, that of the checkpoint's schedule; many-step sampling needs the original.
"""

# Principle: what is constant is computed once, here in float32. The sine and cosine of 999 radians are what half
# precision breaks, and float32 ops leave the Neural Engine (coremltools guide, "Typed Execution").

from __future__ import annotations

from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from md_export.errors import RewriteError
from md_export.models.controlnet import MDControlNet
from md_export.models.layers import ResnetBlock, SepConvBlock
from md_export.models.unet import MDUNet
from md_export.rewrites.adopt import CONTROLNET_MODEL, UNET, type_name
from md_export.spec.sampler import OneStep

# Config fields of diffusers' UNet with which it embeds more than the timestep.
_MORE: Final = ("class_embed_type", "num_class_embeds", "addition_embed_type", "time_cond_proj_dim")


class NoEmbedding(nn.Module):
    """In place of what embeds the timestep; all that read the embedding hold it in their weights."""

    def forward(self, x: Tensor, *_: object) -> Tensor:
        """Return ``x``."""
        return x


class TimelessSepConvBlock(SepConvBlock):
    """A separable convolution block whose norm and biases hold the time embedding already."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:  # noqa: ARG002 (the block's signature)
        """``[B, c_in, H, W]`` → ``[B, c_out, H, W]``; ``emb`` is not read."""
        h = self.conv_pw2(F.silu(self.conv_pw1(self.norm(self.conv_dw(x)))))
        out: Tensor = h + (x if self.conv_shortcut is None else self.conv_shortcut(x))
        return out


@torch.no_grad()
def fold_timestep(module: nn.Module, one_step: OneStep) -> int:
    """Fold ``one_step.timestep`` in place; returns the number of time projections folded.

    From then on the module is called without its second argument, the timestep.

    Raises:
        RewriteError: more than the timestep is embedded.
    """
    embeds = isinstance(module, (MDUNet, MDControlNet)) or type_name(module) in (UNET, CONTROLNET_MODEL)
    if not embeds or count_one_step(module):
        return 0
    hidden = F.silu(_embed(module, one_step.timestep))
    fired = 0
    for block in module.modules():
        if isinstance(block, (ResnetBlock, SepConvBlock)) and block.time_emb_proj is not None:
            _fold(block, block.time_emb_proj(hidden)[0])
            fired += 1
    for name in ("time_proj", "time_embedding"):
        if hasattr(module, name):
            setattr(module, name, NoEmbedding())
    module.register_buffer("nothing", torch.zeros(1), persistent=False)
    module.register_forward_pre_hook(_with_nothing_for_timestep)
    return fired


def count_one_step(module: nn.Module) -> int:
    """Return 1 where the timestep is folded already."""
    return int(isinstance(getattr(module, "time_embedding", None), NoEmbedding))


def _with_nothing_for_timestep(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (args[0], module.nothing, *args[1:])


def _embed(unet: Any, timestep: int) -> Tensor:
    """Return what every ResNet block gets, ``[1, dim]``."""
    added = [name for name in _MORE if getattr(unet.config, name, None) is not None]
    if added:
        raise RewriteError(
            f"the UNet adds to its time embedding what is not constant ({', '.join(added)}). "
            "Take fold_timestep out of the recipe"
        )
    given = torch.tensor([float(timestep)])
    # Only diffusers' modules have time_proj and, but for a ControlNet, time_embed_act.
    embedding: Tensor = unet.time_embedding(unet.time_proj(given) if hasattr(unet, "time_proj") else given)
    act = getattr(unet, "time_embed_act", None)
    return embedding if act is None else act(embedding)


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


def _add_to_bias(conv: nn.Conv2d, shift: Tensor) -> None:
    # A new tensor: the checkpoint's may be mapped from its file.
    conv.bias = nn.Parameter(shift if conv.bias is None else conv.bias + shift, requires_grad=False)


def _scale_and_shift(norm: nn.GroupNorm, scale: Tensor, shift: Tensor) -> None:
    norm.bias = nn.Parameter(norm.bias * (1 + scale) + shift, requires_grad=False)
    norm.weight = nn.Parameter(norm.weight * (1 + scale), requires_grad=False)
