"""Scale channels between linear layers: outliers of activations → weights of the layers that read them.

    norm's gamma and beta / s          columns of the linears that read it · s
    rows of the value projection / s   columns of the output projection · s
    rows of the GLU's value half / s   columns of the second linear · s

The results are equal bit for bit, because each s is a power of two. SmoothQuant (Xiao et al., arXiv 2211.10438) chooses
s = activation^α / weight^(1-α) from calibration inputs. A rewrite has no such inputs: it estimates a channel's
activation by the norm of the row that computes it, which is exact for inputs of mean 0 and variance 1. It tries each α
and uses the one with the smallest predicted error of int8 weights (a scale per row) and activations (one scale).
"""

# Principle: an outlier f that was added to a channel without changing the function does not change the result: with
# activation·f and weight/f, s becomes s·f for each α.

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any, Final

import torch
from torch import Tensor, nn

from md_export.errors import RewriteError
from md_export.models.layers import Attention, FeedForward, SepConvBlock
from md_export.models.t5_encoder import T5Attention, T5AttentionLayer, T5FeedForward, T5FeedForwardLayer
from md_export.models.vae import SpatialAttention
from md_export.rewrites.fold_norm_affine import readings
from md_export.rewrites.fold_timestep import TimelessSepConvBlock
from md_export.rewrites.linear_to_conv2d import ChannelLayerNorm
from md_export.spec.sampler import OneStep

_STRENGTHS: Final = (0.0, 0.25, 0.5, 0.75, 1.0)
# A link is not changed if its predicted error would fall by less than 1 dB.
_WORTH: Final = 0.8


@dataclass(frozen=True)
class Link:
    """Channels between layers that are linear in them.

    Attributes:
        writers: norms and linears that compute the channels in their first or last ``channels`` rows.
        readers: linears or 1×1 convolutions; no other layer reads the channels.
        partners: linears with outputs that are multiplied with the channels: the queries, if values are also keys.
        norm: the norm that the writer reads, if any.
        first: whether the channels are the first rows, not the last.
    """

    channels: int
    writers: tuple[Any, ...]
    readers: tuple[Any, ...]
    partners: tuple[Any, ...] = ()
    norm: Any = None
    first: bool = False

    def divide(self, scale: Tensor) -> None:
        """Divide the channels by ``scale [channels]``, in place; the readers' weights are multiplied by it."""
        for writer in self.writers:
            self._multiply_rows(writer, 1 / scale)
        for partner in self.partners:
            self._multiply_rows(partner, scale)
        for reader in self.readers:
            columns = scale.reshape(1, -1, *[1] * (reader.weight.ndim - 2))
            reader.weight = nn.Parameter(reader.weight * columns, requires_grad=False)

    def rows(self, value: Tensor) -> Tensor:
        """Return the rows of a writer's weight or bias that compute the channels."""
        return value[: self.channels] if self.first else value[len(value) - self.channels :]

    def _multiply_rows(self, layer: Any, factor: Tensor) -> None:
        for name in ("weight", "bias"):
            value = getattr(layer, name, None)
            if value is not None:
                # A new tensor, because the checkpoint's may be mapped read-only from its file.
                scaled = value.detach().clone()
                self.rows(scaled).mul_(factor.reshape(-1, *[1] * (value.ndim - 1)))
                setattr(layer, name, nn.Parameter(scaled, requires_grad=False))


def links(module: nn.Module) -> Iterator[Link]:
    """Yield the groups of channels of ``module`` that can be scaled; those behind norms come last."""
    behind = [Link(_width(norm), (norm,), tuple(readers)) for norm, readers in readings(module)]
    behind += [link for layer in module.modules() for link in _behind_norms(layer)]
    norms = {reader: link.writers[0] for link in behind for reader in link.readers}
    for layer in module.modules():
        yield from (replace(link, norm=norms.get(link.writers[0])) for link in _behind_linears(layer))
    yield from (link for link in behind if link.writers[0].weight is not None)


def _width(norm: Any) -> int:
    return 0 if norm.weight is None else len(norm.weight)


def _behind_norms(layer: Any) -> Iterator[Link]:
    if isinstance(layer, SepConvBlock) and layer.time == "scale_shift" and not isinstance(layer, TimelessSepConvBlock):
        # norm·(1 + scale) + shift: the shift is the last half of the projection.
        yield Link(_width(layer.norm), (layer.norm, layer.time_emb_proj), (layer.conv_pw1,))
    elif isinstance(layer, T5AttentionLayer):
        attention: Any = layer.SelfAttention
        yield Link(_width(layer.layer_norm), (layer.layer_norm,), (attention.q, attention.k, attention.v))
    elif isinstance(layer, T5FeedForwardLayer):
        dense: Any = layer.DenseReluDense
        readers = (dense.wi_0, dense.wi_1) if dense.gated else (dense.wi,)
        yield Link(_width(layer.layer_norm), (layer.layer_norm,), readers)


def _behind_linears(layer: Any) -> Iterator[Link]:
    if isinstance(layer, Attention) and layer.shares_kv:
        yield _between(layer.to_kv, layer.to_out[0], partners=(layer.to_q,))
    elif isinstance(layer, (Attention, SpatialAttention)):
        yield _between(layer.to_v, layer.to_out[0])
    elif isinstance(layer, FeedForward):
        yield _between(layer.net[0].proj, layer.net[2], first=True)
    elif isinstance(layer, T5Attention):
        yield _between(layer.v, layer.o)
    elif isinstance(layer, T5FeedForward) and layer.gated:
        yield _between(layer.wi_1, layer.wo)
    elif hasattr(layer, "v_proj") and hasattr(layer, "out_proj"):  # transformers' CLIPAttention
        yield _between(layer.v_proj, layer.out_proj)


def _between(writer: Any, reader: Any, partners: tuple[Any, ...] = (), first: bool = False) -> Link:
    return Link(reader.weight.shape[1], (writer,), (reader,), partners, first=first)


def equalize(module: nn.Module, one_step: OneStep) -> int:  # noqa: ARG001 (the table's signature)
    """Rewrite in place; return the number of links with a scale other than 1.

    Raises:
        RewriteError: an earlier rewrite moved a norm's gamma and beta elsewhere.
    """
    return equalize_both(module)


@torch.no_grad()
def equalize_both(module: nn.Module, *others: nn.Module) -> int:
    """As :func:`equalize`; ``others`` of the same structure get the scales of ``module``."""
    if any(isinstance(layer, ChannelLayerNorm) for layer in module.modules()):
        raise RewriteError("equalize must come before linear_to_conv2d; exchange them in the recipe")
    fired = 0
    for link, *same in zip(links(module), *map(links, others), strict=True):
        scale = _scale(link)
        if bool((scale != 1).any()):
            for one in (link, *same):
                one.divide(scale)
            fired += 1
    return fired


def count_links(module: nn.Module) -> int:
    """Count the links of ``module``, at least 1. If equalize changes none of them, all have their best scale."""
    return len(list(links(module))) or 1


def _scale(link: Link) -> Tensor:
    """Return powers of two, ``[channels]``, with a median near 1; channels that are never written or read get 1."""
    written = torch.stack([_magnitude(link, writer) for writer in link.writers]).square().sum(0).sqrt()
    columns = torch.cat([reader.weight.flatten(1) for reader in link.readers])
    read = columns.abs().amax(0)
    used = (written > 0) & (read > 0)
    if not bool(used.any()):
        return torch.ones_like(read)
    written, read, columns = written[used], read[used], columns[:, used]
    tried = (_power_of_two(written**strength / read ** (1 - strength)) for strength in _STRENGTHS)
    error, best = min(((_error(written / one, columns * one), one) for one in tried), key=itemgetter(0))
    scale = torch.ones_like(used, dtype=columns.dtype)
    if error < _WORTH * _error(written, columns):
        scale[used] = best
    return scale


def _magnitude(link: Link, writer: Any) -> Tensor:
    """Return the root mean square of each channel, for normalized values of mean 0 and variance 1."""
    matrix, bias = link.rows(writer.weight).reshape(link.channels, -1), getattr(writer, "bias", None)
    shift = torch.zeros(link.channels) if bias is None else link.rows(bias)
    if link.norm is not None and link.norm.weight is not None:
        beta = getattr(link.norm, "bias", None)
        shift = shift if beta is None else shift + matrix @ beta
        matrix = matrix * link.norm.weight
    return (matrix.square().sum(1) + shift.square()).sqrt()


def _power_of_two(scale: Tensor) -> Tensor:
    return torch.exp2((scale / scale.median()).log2().round())


def _error(activations: Tensor, columns: Tensor) -> float:
    """Return the relative error power of a product of int8 activations (one scale) and weights (a scale per row)."""
    of_activations = activations.max().square() * columns.square().sum()
    of_weights = columns.abs().amax(1).square().sum() * activations.square().sum()
    return float(of_activations + of_weights)
