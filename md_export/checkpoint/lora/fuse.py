"""up · down added to a weight, and the same beside the weight: the two must compute the same."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from md_export.checkpoint.lora.match import LowRank
from md_export.errors import CheckpointError


def fused(weights: dict[str, Tensor], changes: Iterable[LowRank], what: str) -> dict[str, Tensor]:
    """The float32 ``weights`` of a component with some changes added; the tensors given stay as they are.

    Raises:
        CheckpointError: a sum is not finite.
    """
    made = dict(weights)
    for change in changes:
        name = f"{change.module}.weight"
        made[name] = made[name] + product(change)
        if not bool(made[name].isfinite().all()):
            raise CheckpointError(f"{what}: {name} becomes NaN or Inf with its LoRA; give a smaller scale")
    return made


def product(change: LowRank) -> Tensor:
    """``scale`` · up · down in float32, of the weight's shape: ``[out, in]`` or ``[out, in, k, k]``."""
    up, down = change.up.double().flatten(1), change.down.double()
    flat = up @ down.flatten(1)
    return (change.scale * flat).float().reshape(up.shape[0], *down.shape[1:])


@contextmanager
def beside(module: nn.Module, changes: Iterable[LowRank]) -> Iterator[None]:
    """While it holds, each changed layer of ``module`` gives its own output + ``scale`` · up(down(x))."""
    layers = dict(module.named_modules())
    with ExitStack() as hooks:
        for change in changes:
            handle = layers[change.module].register_forward_hook(_adder(change))
            hooks.callback(handle.remove)
        yield


def _adder(change: LowRank) -> Any:
    down, up = change.down.float(), change.up.float()

    def add(layer: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> Tensor:
        if isinstance(layer, nn.Conv2d):
            lower = F.conv2d(given[0], down, None, layer.stride, layer.padding, layer.dilation)
            return made + change.scale * F.conv2d(lower, up)
        return made + change.scale * F.linear(F.linear(given[0], down), up)

    return add


@torch.no_grad()
def unfused_call(module: nn.Module, changes: Iterable[LowRank], inputs: tuple[Tensor, ...]) -> Tensor:
    """What a component gives with the changes beside its weights."""
    with beside(module, changes):
        made: Tensor = module(*inputs)
    return made
