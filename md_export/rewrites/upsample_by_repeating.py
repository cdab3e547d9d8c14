"""Nearest ×2 as a resize → each row and each column repeated.

    interpolate(x, scale_factor=2, mode="nearest")  →  x.repeat_interleave(2, dim=-2).repeat_interleave(2, dim=-1)

Every value is copied, so the outputs are equal to the bit. MPSGraph rejects a nearest-neighbour resize of a Core AI
graph, which then runs on the CPU (``nearest-resize`` in targets/coreai/known_faults.toml).
"""

from __future__ import annotations

from typing import Final

from torch import Tensor, nn

from md_export.models.layers import Upsample
from md_export.models.tiny_autoencoder import DoubleSize
from md_export.spec.sampler import OneStep


def _repeated(x: Tensor) -> Tensor:
    """``[B, C, H, W]`` → ``[B, C, 2H, 2W]``."""
    return x.repeat_interleave(2, dim=-2).repeat_interleave(2, dim=-1)


class RepeatingUpsample(Upsample):
    """Upsample that repeats rows and columns."""

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` → ``[B, C, 2H, 2W]``."""
        out: Tensor = self.conv(_repeated(x))
        return out


class RepeatingDoubleSize(DoubleSize):
    """DoubleSize that repeats rows and columns."""

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` → ``[B, C, 2H, 2W]``."""
        return _repeated(x)


_FORMS: Final[dict[type[nn.Module], type[nn.Module]]] = {Upsample: RepeatingUpsample, DoubleSize: RepeatingDoubleSize}


def upsample_by_repeating(module: nn.Module, one_step: OneStep) -> int:  # noqa: ARG001 (the table's signature)
    """Change in place; returns the number of upsamplers changed."""
    found = [layer for layer in module.modules() if type(layer) in _FORMS]
    for layer in found:
        layer.__class__ = _FORMS[type(layer)]
    return len(found)


def count_repeating(module: nn.Module) -> int:
    """Count the upsamplers that repeat already."""
    return sum(isinstance(layer, RepeatingUpsample | RepeatingDoubleSize) for layer in module.modules())
