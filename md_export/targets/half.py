"""A half-precision copy of a module with a float32 surface."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from md_export.errors import ConversionError
from md_export.system.memory import let_go_of


def half_copy(module: nn.Module) -> nn.Module:
    """Copy ``module`` with float16 parameters; its inputs and outputs stay as they were.

    The copy costs half of the module's memory, never a full one: parameters are handed to ``deepcopy``
    already converted. Casts sit in hooks, not in a wrapper module, so that module paths stay the
    checkpoint's. Non-persistent buffers are tables that the modules compute (frequencies of the time
    embedding, causal mask); they stay float32 because at t = 999 a float16 frequency table turns the
    angle by up to 0.24 rad.

    Raises:
        ConversionError: a parameter exceeds float16's range.
    """
    halves: dict[int, Any] = {id(p): _half(name, p) for name, p in module.named_parameters()}
    halves |= {id(b): _half(name, b) for name, b in _persistent_buffers(module)}
    copied = copy.deepcopy(module, halves)
    # First: a module's own hooks may hand inputs on by name, where the casts would not find them.
    copied.register_forward_pre_hook(_to_half, prepend=True)
    copied.register_forward_hook(_to_float)
    return copied


def _persistent_buffers(module: nn.Module) -> list[tuple[str, Tensor]]:
    stored = module.state_dict(keep_vars=True)
    return [(name, b) for name, b in module.named_buffers() if name in stored]


def _half(name: str, value: Tensor) -> Tensor:
    if value.dtype != torch.float32:
        return value
    half = value.detach().half()
    if not torch.isfinite(half).all():
        raise ConversionError(
            f"{name} holds values that float16 cannot (largest magnitude {value.abs().max().item():.4g}, "
            "limit 65504, or not finite): export this component as float32"
        )
    let_go_of([value])
    return nn.Parameter(half, requires_grad=False) if isinstance(value, nn.Parameter) else half


def _to_half(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    # Rank-1 inputs are times, which float16 would round; the time embedding computes in float32.
    return tuple(x.half() if x.dtype == torch.float32 and x.ndim > 1 else x for x in inputs)


def _to_float(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]) -> Any:
    return tuple(value.float() for value in output) if isinstance(output, tuple) else output.float()
