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

from collections.abc import Mapping
from typing import Final, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from md_export.components.controlnet import MDControlNet
from md_export.components.layers import ResnetBlock, SepConvBlock
from md_export.components.unet import DownPath, MDUNet
from md_export.errors import RewriteError
from md_export.rewrites.fixed_time import embed, forget_timestep, is_fixed
from md_export.rewrites.foreign import CONTROLNET_MODEL, UNET, type_name
from md_export.sampler import OneStep


class TimelessSepConvBlock(SepConvBlock):
    """A separable convolution block whose norm and biases hold the time embedding already."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:  # noqa: ARG002 (the block's signature)
        """``[B, c_in, H, W]`` → ``[B, c_out, H, W]``; ``emb`` is not looked at."""
        h = self.conv_pw2(F.silu(self.conv_pw1(self.norm(self.conv_dw(x)))))
        out: Tensor = h + (x if self.conv_shortcut is None else self.conv_shortcut(x))
        return out


class OneStepUNet(MDUNet):
    """The denoiser at one timestep."""

    nothing: Tensor

    # The input that was folded away is what this rewrite is about.
    def forward(  # type: ignore[override]
        self, sample: Tensor, encoder_hidden_states: Tensor, *residuals: Tensor
    ) -> Tensor:
        """As :meth:`MDUNet.forward` without its timestep."""
        return super().forward(sample, self.nothing, encoder_hidden_states, *residuals)


class OneStepControlNet(MDControlNet):
    """A ControlNet at one timestep."""

    nothing: Tensor

    def forward(  # type: ignore[override]
        self, sample: Tensor, encoder_hidden_states: Tensor, condition: Tensor
    ) -> tuple[Tensor, ...]:
        """As :meth:`MDControlNet.forward` without its timestep."""
        return super().forward(sample, self.nothing, encoder_hidden_states, condition)


_OF_ONE_STEP: Final[Mapping[type[nn.Module], type[DownPath]]] = {MDUNet: OneStepUNet, MDControlNet: OneStepControlNet}


@torch.no_grad()
def fold_timestep(module: nn.Module, one_step: OneStep) -> int:
    """Fold ``one_step.timestep`` in place; returns the number of time projections folded.

    Raises:
        RewriteError: another rewrite changed the UNet's inputs or outputs before.
    """
    if type_name(module) in (UNET, CONTROLNET_MODEL) and not is_fixed(module):
        fired = _fold_all(module, embed(module, one_step.timestep))
        forget_timestep(module)
        return fired
    if not isinstance(module, DownPath) or isinstance(module, (OneStepUNet, OneStepControlNet)):
        return 0
    if type(module) not in _OF_ONE_STEP:
        raise RewriteError("fold_timestep comes before fold_x0: exchange them in the recipe")
    fired = _fold_all(module, module.time_embedding(torch.tensor([float(one_step.timestep)])))
    module.time_embedding = cast(nn.Module, nn.Identity())  # type: ignore[assignment]
    module.register_buffer("nothing", torch.zeros(1), persistent=False)
    module.__class__ = _OF_ONE_STEP[type(module)]
    return fired


def count_one_step(module: nn.Module) -> int:
    """1 where the timestep is folded already."""
    return int(isinstance(module, (OneStepUNet, OneStepControlNet)) or is_fixed(module))


def _fold_all(unet: nn.Module, embedding: Tensor) -> int:
    """Into each block that reads the time ``embedding``, ``[1, dim]``."""
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


def _add_to_bias(conv: nn.Conv2d, shift: Tensor) -> None:
    # A new tensor: the checkpoint's may be mapped from its file.
    conv.bias = nn.Parameter(shift if conv.bias is None else conv.bias + shift, requires_grad=False)


def _scale_and_shift(norm: nn.GroupNorm, scale: Tensor, shift: Tensor) -> None:
    norm.bias = nn.Parameter(norm.bias * (1 + scale) + shift, requires_grad=False)
    norm.weight = nn.Parameter(norm.weight * (1 + scale), requires_grad=False)
