"""What the forms that keep tokens as channels share: the walk that substitutes, and parts equal in all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor, nn

from md_export.models.layers import GluProjection
from md_export.models.text_encoder import TextEncoder
from md_export.models.unet import TransformerStack
from md_export.models.vae import SpatialAttention
from md_export.rewrites.conv1x1 import as_conv2d

# Where tokens are; TextEncoder is what surrounds transformers' own layers.
ROOTS: Final = (TransformerStack, SpatialAttention, TextEncoder)


class ChannelGlu(GluProjection):
    """The gated projection; halves [value | gate] of the channels."""

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, …]`` → ``[B, inner, …]``."""
        value, gate = self.proj(x).chunk(2, dim=1)
        out: Tensor = value * self.act(gate)
        return out


def scaled(x: Tensor, scale: float) -> Tensor:
    """``x · scale``; no op where the scale was folded into a projection's weights."""
    return x if scale == 1.0 else x * scale


class ClipProjections(nn.Module):
    """The four projections of transformers' ``CLIPAttention`` under their names; a form adds ``forward``.

    No subclass of CLIPAttention: transformers takes ten seconds to import.
    """

    def __init__(self, clip: Any) -> None:
        super().__init__()
        self.heads = int(clip.num_heads)
        self.scale = float(clip.scale)
        self.k_proj: nn.Module = clip.k_proj
        self.v_proj: nn.Module = clip.v_proj
        self.q_proj: nn.Module = clip.q_proj
        self.out_proj: nn.Module = clip.out_proj


@dataclass(frozen=True)
class TokenForm:
    """What stands for what in one form.

    Attributes:
        classes: a module of the first class becomes one of the second, in place.
        clip_attention: holds the projections of a CLIPAttention.
        layer_norm: changes a LayerNorm over tokens in place.
    """

    classes: Mapping[type[nn.Module], type[nn.Module]]
    clip_attention: type[ClipProjections]
    layer_norm: Callable[[nn.LayerNorm], None]

    def apply(self, module: nn.Module) -> int:
        """Rewrite in place; returns the number of linears that became convolutions."""
        return sum(self._rewrite(layer) for layer in list(module.modules()) if type(layer) in ROOTS)

    def _rewrite(self, parent: nn.Module) -> int:
        parent.__class__ = self.classes.get(type(parent), type(parent))
        fired = 0
        for name, child in list(parent.named_children()):
            substitute = self._substitute(name, child)
            setattr(parent, name, substitute)
            fired += int(isinstance(child, nn.Linear)) + self._rewrite(substitute)
        return fired

    def _substitute(self, name: str, child: nn.Module) -> nn.Module:
        if isinstance(child, nn.Linear):
            return as_conv2d(child)
        if name == "self_attn":  # transformers' CLIPAttention
            return self.clip_attention(child)
        if type(child) is nn.LayerNorm:
            self.layer_norm(child)
        return child
