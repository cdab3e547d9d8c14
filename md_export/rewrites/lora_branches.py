"""LoRAs beside the weights: each changed layer computes W·x + up(down(x)), with W as the checkpoint has it.

    linear(x), W' = W + up·down        →  linear(x) + up(down(x))
    conv2d(x), W' = W + up·down        →  conv2d(x) + conv2d_1x1(conv2d_kxk(x))
    a bias that changes, b' = b + d    →  up(down(x)) + d

W keeps its bytes in any scheme, so exports of several styles can share it. The factors come from the difference of the
rewritten weights with and without the LoRAs, by a singular value decomposition; so every form of LoRA whose difference
has a low rank has them, and rewrites that scale, split or fold weights need no second version.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from md_export.errors import RewriteError
from md_export.rewrites.upsample_to_four_convs import FourConv2d
from md_export.rewrites.vector_linear_to_conv2d import VectorConv2d
from md_export.spec.loras import BRANCH, LARGEST_RANK

_FIRST_GUESS: Final = 16
# Rounding of the two weights to float32, and of their rewrites, leaves less than this share of the larger norm.
_ROUNDING: Final = 2.0**-21
_SHOWN: Final = 3


@dataclass(frozen=True)
class Factors:
    """Difference of one layer: ``up [out, r]``, ``down [r, in·kh·kw]``, ``shift [out]`` of the bias if that changes."""

    up: Tensor
    down: Tensor
    shift: Tensor | None = None

    @property
    def rank(self) -> int:
        """Number of rows of ``down``."""
        return self.down.shape[0]


@torch.no_grad()
def factors_of(base: nn.Module, changed: nn.Module) -> dict[str, Factors]:
    """Return the factors of each layer that differs between two modules of the same structure, by path.

    Raises:
        RewriteError: something differs that a branch cannot add, such as a norm, or a difference has no low rank.
    """
    found, others = dict[str, Factors](), list[str]()
    pairs = dict(changed.named_modules())
    for path, layer in base.named_modules():
        names = _differing(layer, pairs[path])
        if not names:
            continue
        if not isinstance(layer, (nn.Linear, nn.Conv2d)) or getattr(layer, "groups", 1) > 1:
            others += [f"{path}.{name}" for name in names]
            continue
        factors = _factors(layer, pairs[path], names)
        if factors is None:
            others.append(f"{path}.weight (a difference of rank {min(layer.weight.flatten(1).shape)})")
        else:
            found[path] = factors
    if others:
        more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
        raise RewriteError(
            f"its LoRAs change {', '.join(others[:_SHOWN])}{more}, which cannot be computed beside the weights: only "
            "linear layers and convolutions without groups, of low rank. Fuse these LoRAs, or leave out the rewrite "
            "that folds this layer"
        )
    return found


def _differing(layer: nn.Module, other: nn.Module) -> list[str]:
    own = [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]
    # The phases of this convolution are computed from its weight.
    names = [name for name, _ in own if not (isinstance(layer, FourConv2d) and name == "phases")]
    values: Mapping[str, Any] = dict(own)
    return [name for name in names if not torch.equal(values[name], getattr(other, name))]


def _factors(layer: Any, other: Any, names: list[str]) -> Factors | None:
    weight, new = layer.weight.flatten(1), other.weight.flatten(1)
    shift = other.bias - layer.bias if "bias" in names else None
    split = _low_rank(new.double() - weight.double(), _ROUNDING * float(max(weight.norm(), new.norm())))
    return None if split is None else Factors(split[0].float(), split[1].float(), shift)


def _low_rank(difference: Tensor, rounding: float) -> tuple[Tensor, Tensor] | None:
    """Return ``up`` and ``down`` of the least rank that leaves at most ``rounding`` (Frobenius norm); None if too high.

    Randomized range finder (Halko et al., arXiv 0909.4061), with twice the columns until they suffice.
    """
    generator, (rows, columns) = torch.Generator().manual_seed(0), difference.shape
    most = min(rows, columns, LARGEST_RANK)
    guess = min(_FIRST_GUESS, most)
    while True:
        drawn = torch.randn(columns, guess, generator=generator, dtype=difference.dtype)
        basis, _ = torch.linalg.qr(difference @ drawn)
        inner = basis.T @ difference
        left = float((difference - basis @ inner).norm())
        if left <= rounding:
            break
        if guess == most:
            return None
        guess = min(2 * guess, most)
    u, values, v = torch.linalg.svd(inner, full_matrices=False)
    tails = values.square().flip(0).cumsum(0).flip(0).sqrt()
    rank = max(1, int((tails > rounding).sum()))
    if 2 * rank > min(rows, columns) and rank > _FIRST_GUESS:
        return None
    root = values[:rank].sqrt()
    return basis @ u[:, :rank] * root, root[:, None] * v[:rank]


class LoraBranch(nn.Module):
    """up(down(x)) with stored factors, beside a layer with an unchanged ``weight``."""

    def __init__(self, layer: nn.Linear | nn.Conv2d, factors: Factors) -> None:
        super().__init__()
        has_shift = factors.shift is not None
        if is_vector(layer):
            self.down: nn.Module = nn.Linear(factors.down.shape[1], factors.rank, bias=False)
            self.up: nn.Module = nn.Linear(factors.rank, len(factors.up), bias=has_shift)
        else:
            size, stride, padding = kernel_of(layer)
            self.down = nn.Conv2d(layer.weight.shape[1], factors.rank, size, stride, padding, bias=False)
            self.up = nn.Conv2d(factors.rank, len(factors.up), 1, bias=has_shift)
        for inner, value in ((self.down, factors.down), (self.up, factors.up)):
            own = inner.get_parameter("weight")
            inner.register_parameter("weight", nn.Parameter(value.reshape(own.shape), requires_grad=False))
        if factors.shift is not None:
            self.up.register_parameter("bias", nn.Parameter(factors.shift, requires_grad=False))

    def forward(self, x: Tensor) -> Tensor:
        """Input of the layer → what is added to its output."""
        out: Tensor = self.up(self.down(x))
        return out


def is_vector(layer: nn.Module) -> bool:
    """Whether the layer's input has its channels last: a linear layer, or a convolution on vectors."""
    return isinstance(layer, (nn.Linear, VectorConv2d))


def kernel_of(layer: nn.Conv2d | nn.Linear) -> tuple[Any, Any, Any]:
    """Return kernel size, stride and padding of a convolution, on the input that :func:`seen_by` returns."""
    assert isinstance(layer, nn.Conv2d)  # noqa: S101 (linear layers have none)
    return layer.kernel_size, layer.stride, layer.padding


def seen_by(layer: nn.Module, x: Tensor) -> Tensor:
    """Return the map that the convolution with the stored weight reads, for the layer's input."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest") if isinstance(layer, FourConv2d) else x


def attach(module: nn.Module, branches: Mapping[str, nn.Module]) -> None:
    """Add the output of each branch to that of the layer at its path, in place; the layer's own path stays."""
    for path, branch in branches.items():
        layer = module.get_submodule(path)
        layer.add_module(BRANCH, branch)
        layer.__class__ = _with_branch(type(layer))


def _with_branch(ours: type[nn.Module]) -> type[nn.Module]:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        out: Tensor = ours.forward(self, x) + self.get_submodule(BRANCH)(seen_by(self, x))
        return out

    return type(f"{ours.__name__}WithLora", (ours,), {"forward": forward})


def put_beside(base: nn.Module, changed: nn.Module) -> int:
    """Give ``base`` branches with which it computes what ``changed`` does, in place; return their number.

    Raises:
        RewriteError: as :func:`factors_of`.
    """
    found = factors_of(base, changed)
    attach(base, {path: LoraBranch(_layer(base, path), factors) for path, factors in found.items()})
    return len(found)


def _layer(module: nn.Module, path: str) -> Any:
    return module.get_submodule(path)
