"""Shared code of linear_to_conv2d and tokens_to_maps: layers that compute on tokens as channels.

Both turn the linears on tokens into 1×1 convolutions and keep the tokens as ``[B, C, 1, L]`` between them. They differ
in a :class:`Form`: the conversion from tokens to channels, the split into heads, and the products of the attention.
A substitute is a subclass that is set as the original's class, or a module with the original's children under the same
names; module paths and parameters stay the same.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Final

from torch import Tensor, nn

from md_export.models.dit import DiT
from md_export.models.layers import Attention, GluProjection, TimestepEmbedding
from md_export.models.patch_transformer import PatchModule, Tokens, VectorLinear
from md_export.models.pixart import PixArt
from md_export.models.t5_encoder import SHARE, T5Attention, T5Encoder, T5Norm
from md_export.models.text_encoder import TextEncoder
from md_export.models.unet import TransformerStack
from md_export.models.vae import SpatialAttention

# Modules that contain tokens; TextEncoder contains transformers' own layers.
ROOTS: Final = (TransformerStack, SpatialAttention, TextEncoder, T5Encoder, DiT, PixArt)
# Modules in these that compute on vectors ``[B, C]``.
_VECTORS: Final = (VectorLinear, TimestepEmbedding)


def as_conv2d(linear: nn.Linear) -> nn.Conv2d:
    """Return a convolution with the same weight and bias: ``[out, in, 1, 1]`` is a view of ``[out, in]``."""
    conv = nn.Conv2d(linear.in_features, linear.out_features, 1, bias=linear.bias is not None, device="meta")
    conv.weight = nn.Parameter(linear.weight.detach()[:, :, None, None], requires_grad=linear.weight.requires_grad)
    conv.bias = linear.bias
    return conv.train(linear.training)


def as_linear(conv: nn.Conv2d) -> nn.Linear:
    """Return a linear with the weight and bias of a 1×1 convolution, without a copy."""
    linear = nn.Linear(conv.in_channels, conv.out_channels, bias=conv.bias is not None, device="meta")
    linear.weight = nn.Parameter(conv.weight.detach()[:, :, 0, 0], requires_grad=conv.weight.requires_grad)
    linear.bias = conv.bias  # type: ignore[assignment]  # None without a bias
    return linear.train(conv.training)


def scaled(x: Tensor, scale: float) -> Tensor:
    """Return ``x · scale``; adds no operation if the scale is 1, as after fold_attention_scale."""
    return x if scale == 1.0 else x * scale


class Form(ABC):
    """Layout of tokens as channels, and the attention on it."""

    @abstractmethod
    def enter(self, tokens: Tensor) -> Tensor:
        """``[B, L, C]`` → ``[B, C, 1, L]``."""

    @abstractmethod
    def leave(self, channels: Tensor) -> Tensor:
        """``[B, C, 1, L]`` → ``[B, L, C]``."""

    @abstractmethod
    def heads(self, x: Tensor, heads: int) -> Tensor:
        """Split the channels of ``[B, C, H, W]`` into heads."""

    @abstractmethod
    def attend(self, q: Tensor, k: Tensor, v: Tensor, weigh: Callable[[Tensor], Tensor], shape: Any) -> Tensor:
        """Return attention as ``[B, C, H, W]``; ``weigh``: scores → weights; ``shape``: shape of the queries."""

    @abstractmethod
    def layer_norm(self, norm: nn.LayerNorm) -> None:
        """Change a LayerNorm over tokens in place into one over channels."""

    def mask(self, mask: Tensor, heads: int) -> Tensor:  # noqa: ARG002 (a form with heads in the batch needs it)
        """Return the mask ``[B, 1 or heads, Lq or 1, Lk]`` in the rank of the scores."""
        return mask

    def flat(self, x: Tensor) -> Tensor:
        """Return ``[B, C, H, W]`` in the shape for norms and projections."""
        return x

    def unflat(self, x: Tensor, shape: Any) -> Tensor:  # noqa: ARG002 (a form that flattens needs it)
        """Return the inverse of :meth:`flat`."""
        return x


class ChannelGlu(GluProjection):
    """The gated projection on channels, with the halves [value | gate]."""

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, …]`` → ``[B, inner, …]``."""
        value, gate = self.proj(x).chunk(2, dim=1)
        out: Tensor = value * self.act(gate)
        return out


class ChannelAttention(Attention):
    """Multi-head attention on tokens as channels."""

    form: Form

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """``x: [B, C, H, W]``, ``context: [B, D, 1, L]`` → ``[B, C, H, W]``; ``mask`` has the form's rank."""
        q = self.form.heads(self.to_q(x), self.heads)
        # After the split: directly after the convolution, coremltools would fold it into a new weight without a name.
        q = scaled(q, self.scale)
        k, v = self.keys_values(x if context is None else context, lambda source: self.form.heads(source, self.heads))

        def weigh(scores: Tensor) -> Tensor:
            weights: Tensor = self.weights(scores if mask is None else scores + mask)
            return weights

        out: Tensor = self.to_out[0](self.form.attend(q, k, v, weigh, x.shape))
        return out


class ChannelStack(TransformerStack):
    """The transformer stack on channels.

    Every stack converts the text itself, so that its signature stays; converters merge the equal transposes.
    """

    form: Form

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """``x: [B, C, H, W]``, ``context: [B, L, D]`` → ``[B, C, H, W]``."""
        text = self.form.enter(context)
        inner = self.proj_in(self.norm(self.form.flat(x)))
        for block in self.transformer_blocks:
            inner = block(inner, text)
        out: Tensor = x + self.form.unflat(self.proj_out(inner), x.shape)
        return out


class ChannelSpatialAttention(SpatialAttention):
    """The VAE's attention over all pixels, one head."""

    form: Form

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` → ``[B, C, H, W]``."""
        pixels = self.form.flat(x)
        normed = self.group_norm(pixels)
        q, k, v = (self.form.heads(project(normed), 1) for project in (self.to_q, self.to_k, self.to_v))
        q = scaled(q, self.scale)
        attended = self.form.attend(q, k, v, lambda scores: scores.softmax(dim=-1), pixels.shape)
        out: Tensor = x + self.form.unflat(self.to_out[0](attended), x.shape)
        return out


class ChannelClipAttention(nn.Module):
    """CLIP's attention on ``[B, C, 1, L]``: the projections of transformers' ``CLIPAttention`` under their names.

    Not a subclass of CLIPAttention, because importing transformers takes ten seconds.
    """

    def __init__(self, clip: Any, form: Form) -> None:
        super().__init__()
        self.form = form
        self.heads = int(clip.num_heads)
        self.scale = float(clip.scale)
        self.k_proj: nn.Module = clip.k_proj
        self.v_proj: nn.Module = clip.v_proj
        self.q_proj: nn.Module = clip.q_proj
        self.out_proj: nn.Module = clip.out_proj

    def forward(self, hidden_states: Tensor, attention_mask: Tensor) -> tuple[Tensor, None]:
        """Return output and, as CLIPAttention without weights, None; ``attention_mask: [1, 1, L, L]`` is added."""
        projections = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (self.form.heads(project(hidden_states), self.heads) for project in projections)

        def weigh(scores: Tensor) -> Tensor:
            return (scores + self.form.mask(attention_mask, self.heads)).softmax(dim=-1)

        q = scaled(q, self.scale)
        return self.out_proj(self.form.attend(q, k, v, weigh, hidden_states.shape)), None


class ChannelTextEncoder(TextEncoder):
    """The text encoder with layers that compute on ``[B, hidden, 1, L]``."""

    form: Form

    def enter(self, tokens: Tensor) -> Tensor:
        """``[B, L, C]`` → ``[B, C, 1, L]``."""
        return self.form.enter(tokens)

    def leave(self, hidden: Tensor) -> Tensor:
        """``[B, C, 1, L]`` → ``[B, L, C]``."""
        return self.form.leave(hidden)


class ChannelT5Attention(T5Attention):
    """T5's attention on tokens as channels; the bias has the form's rank."""

    form: Form

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """``[B, C, 1, L]`` → ``[B, C, 1, L]``."""
        q, k, v = (self.form.heads(project(x), self.heads) for project in (self.q, self.k, self.v))
        attended = self.form.attend(q, k, v, lambda scores: (scores + bias).softmax(dim=-1), x.shape)
        out: Tensor = self.o(attended * SHARE)
        return out


# Classes of attention on tokens as channels; each instance has a ``form``.
ATTENTIONS: Final = (ChannelAttention, ChannelSpatialAttention, ChannelClipAttention, ChannelT5Attention)


class ChannelT5Encoder(T5Encoder):
    """T5's encoder with layers that compute on ``[B, d_model, 1, L]``."""

    form: Form

    def enter(self, tokens: Tensor) -> Tensor:
        """``[B, L, C]`` → ``[B, C, 1, L]``."""
        return self.form.enter(tokens)

    def leave(self, tokens: Tensor) -> Tensor:
        """``[B, C, 1, L]`` → ``[B, L, C]``."""
        return self.form.leave(tokens)

    def added(self, mask: Tensor) -> Tensor:
        """Return the mask in the form's rank."""
        return self.form.mask(super().added(mask), self.heads)


class ChannelT5Norm(T5Norm):
    """T5's norm over the channels of ``[B, C, 1, L]``."""

    AXIS = 1


class PatchTokens(Tokens):
    """Patch tokens as channels: a map of patches, and text with height 1."""

    def __init__(self, form: Form) -> None:
        self.form = form

    def enter(self, patches: Tensor) -> Tensor:
        """Return ``[B, C, h, w]`` in the shape for norms and projections."""
        return self.form.flat(patches)

    def text(self, hidden: Tensor) -> Tensor:
        """``[B, L, D]`` → ``[B, D, 1, L]``."""
        return self.form.enter(hidden)

    def mask(self, added: Tensor, heads: int) -> Tensor:
        """Return the mask ``[B, L]`` in the rank of the scores."""
        return self.form.mask(super().mask(added, heads), heads)

    def along(self, vector: Tensor) -> Tensor:
        """``[B, C]`` → ``[B, C, 1, 1]``."""
        return vector[:, :, None, None]

    def leave(self, tokens: Tensor, high: int, wide: int) -> Tensor:
        """``[B, C, …]`` → ``[B, h, w, C]``."""
        return super().leave(tokens.permute(0, 2, 3, 1), high, wide)


_CLASSES: Final[Mapping[type[nn.Module], type[nn.Module]]] = {
    TransformerStack: ChannelStack,
    Attention: ChannelAttention,
    GluProjection: ChannelGlu,
    SpatialAttention: ChannelSpatialAttention,
    TextEncoder: ChannelTextEncoder,
    T5Encoder: ChannelT5Encoder,
    T5Attention: ChannelT5Attention,
    T5Norm: ChannelT5Norm,
}


def use_form(module: nn.Module, form: Form) -> int:
    """Rewrite in place; return the number of linears that became convolutions."""
    return sum(_rewrite(layer, form) for layer in list(module.modules()) if type(layer) in ROOTS)


def _rewrite(parent: Any, form: Form) -> int:
    if type(parent) in _CLASSES:
        parent.__class__ = _CLASSES[type(parent)]
        parent.form = form
    if isinstance(parent, PatchModule):
        parent.layout = PatchTokens(form)
    fired = 0
    for name, child in list(parent.named_children()):
        if isinstance(child, _VECTORS):
            continue
        substitute = _substitute(name, child, form)
        setattr(parent, name, substitute)
        fired += int(isinstance(child, nn.Linear)) + _rewrite(substitute, form)
    return fired


def _substitute(name: str, child: nn.Module, form: Form) -> nn.Module:
    if isinstance(child, nn.Linear):
        return as_conv2d(child)
    if name == "self_attn":  # transformers' CLIPAttention
        return ChannelClipAttention(child, form)
    if type(child) is nn.LayerNorm:
        form.layer_norm(child)
    return child
