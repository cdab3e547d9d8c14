"""Run a torch module and see, or replace, what each module inside it gives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, Final

import torch
from torch import Tensor, nn

# They give what they are given.
_NOTHING: Final = (nn.Identity, nn.Dropout)
# Called with a module's path and what it gives; what it returns takes that value's place, None leaves it.
Visit = Callable[[str, Tensor], Tensor | None]


def follow(module: nn.Module, inputs: tuple[Tensor, ...], visit: Visit) -> Tensor:
    """Run ``module`` and visit every output inside it, in order of completion; the root's path is empty.

    Modules that give no tensor first are passed over. Of several outputs, all are returned in a row.
    """
    with ExitStack() as hooks, torch.no_grad():
        for path, child in module.named_modules():
            if not isinstance(child, _NOTHING):
                hooks.callback(child.register_forward_hook(_hook(path, visit)).remove)
        output: Tensor | tuple[Tensor, ...] = module(*inputs)
    return torch.cat([value.flatten() for value in output]) if isinstance(output, tuple) else output


def _hook(path: str, visit: Visit) -> Any:
    def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        first = output[0] if isinstance(output, tuple) and output else output
        other = visit(path, first) if isinstance(first, Tensor) else None
        if other is None:
            return None
        return (other, *output[1:]) if isinstance(output, tuple) else other

    return hook


def outputs_of(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Mapping[str, Tensor], Tensor]:
    """What each module gives that is called exactly once, by path in order of completion; and what the whole gives."""
    found: dict[str, Tensor] = {}
    calls: Counter[str] = Counter()

    def visit(path: str, value: Tensor) -> None:
        calls[path] += 1
        found[path] = value

    output = follow(module, inputs, visit)
    return {path: value for path, value in found.items() if calls[path] == 1}, output
