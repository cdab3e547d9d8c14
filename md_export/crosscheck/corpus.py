"""Single operations of the model's components, with inputs and weights that float16 holds exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class _Apply(nn.Module):
    """A function of tensors as a module."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self._function = function

    def forward(self, *values: Tensor) -> Tensor:
        """What the function makes of them."""
        made: Tensor = self._function(*values)
        return made


@dataclass(frozen=True)
class Operation:
    """One line of the table.

    Attributes:
        name: as the table shows it.
        make: the module, with weights if it has any.
        shapes: of its inputs.
        scale, shift: of inputs drawn from a normal distribution; at a ``shift`` of 999 they are multiples of a half.
    """

    name: str
    make: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...]
    scale: float = 1.0
    shift: float = 0.0

    def module(self) -> nn.Module:
        """In eval mode, float32; the same weights each time, each a float16 value."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            made: nn.Module = self.make().eval().requires_grad_(False)
        for parameter in made.parameters():
            parameter.copy_(parameter.half().float())
        return made

    def inputs(self) -> tuple[Tensor, ...]:
        """Float32 tensors of float16 values."""
        generator = torch.Generator().manual_seed(1)
        drawn = (torch.randn(shape, generator=generator) for shape in self.shapes)
        return tuple((self.shift + self.scale * value).half().float() for value in drawn)


def _of(function: Callable[..., Tensor]) -> Callable[[], nn.Module]:
    return lambda: _Apply(function)


def _norm(kind: Callable[..., nn.Module], *sizes: int) -> Callable[[], nn.Module]:
    """With factors and shifts that are not ones and zeros."""

    def make() -> nn.Module:
        made = kind(*sizes)
        nn.init.normal_(made.get_parameter("weight"), 1.0, 0.2)
        nn.init.normal_(made.get_parameter("bias"), 0.0, 0.2)
        return made

    return make


def _attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    scores: Tensor = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1)
    return scores @ value


_MAP, _TOKENS, _HEADS = (1, 32, 16, 16), (1, 77, 64), (1, 4, 64, 32)

OPERATIONS: Final = (
    Operation("add", _of(torch.add), (_MAP, _MAP)),
    Operation("mul", _of(torch.mul), (_MAP, _MAP)),
    Operation("matmul", _of(torch.matmul), ((1, 4, 64, 32), (1, 4, 32, 64))),
    Operation("linear", lambda: nn.Linear(64, 96), (_TOKENS,)),
    Operation("conv 3×3", lambda: nn.Conv2d(32, 48, 3, padding=1), (_MAP,)),
    Operation("conv 1×1", lambda: nn.Conv2d(32, 48, 1), (_MAP,)),
    Operation("conv depthwise", lambda: nn.Conv2d(32, 32, 3, padding=1, groups=32), (_MAP,)),
    Operation("conv stride 2", lambda: nn.Conv2d(32, 48, 3, stride=2, padding=1), (_MAP,)),
    Operation("group norm", _norm(nn.GroupNorm, 8, 32), (_MAP,)),
    Operation("group norm, mean 30", _norm(nn.GroupNorm, 8, 32), (_MAP,), shift=30.0),
    Operation("layer norm", _norm(nn.LayerNorm, 64), (_TOKENS,)),
    Operation("layer norm, mean 30", _norm(nn.LayerNorm, 64), (_TOKENS,), shift=30.0),
    Operation("softmax", _of(lambda x: x.softmax(-1)), ((1, 4, 64, 77),)),
    Operation("softmax, scores of 30", _of(lambda x: x.softmax(-1)), ((1, 4, 64, 77),), scale=10.0),
    Operation("attention", _of(_attention), (_HEADS, _HEADS, _HEADS)),
    Operation("silu", _of(F.silu), (_MAP,), scale=3.0),
    Operation("gelu", _of(F.gelu), (_MAP,), scale=3.0),
    Operation("sigmoid", _of(torch.sigmoid), (_MAP,), scale=3.0),
    Operation("exp", _of(torch.exp), (_MAP,)),
    Operation("rsqrt", _of(lambda x: torch.rsqrt(x * x + 1)), (_MAP,)),
    Operation("mean", _of(lambda x: x.mean(-1, keepdim=True)), (_TOKENS,)),
    Operation("upsample ×2", _of(lambda x: F.interpolate(x, scale_factor=2.0, mode="nearest")), (_MAP,)),
    Operation("sin at 999", _of(torch.sin), ((1, 256),), scale=5.0, shift=999.0),
    Operation("cos at 999", _of(torch.cos), ((1, 256),), scale=5.0, shift=999.0),
)
