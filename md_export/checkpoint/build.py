"""Modules without memory: parameters on the meta device, constants computed, absurd sizes refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from md_export.errors import CheckpointError, ConfigError
from md_export.models.config import ModelConfig
from md_export.models.graph import Component

MAX_PARAMETERS: Final = 8_000_000_000
# More layers cost seconds and gigabytes whatever their widths; MobileDiffusion's UNet has 700 tensors.
MAX_TENSORS: Final = 10_000


class _ParametersOnMeta(TorchFunctionMode):
    """Redirect ``torch.empty``, which allocates the parameters of every layer, and count the elements.

    Constants (time frequencies, the causal mask) come from other functions and stay on the CPU:
    no file holds them, so a module built wholly on the meta device could not get them back.
    """

    def __init__(self) -> None:
        super().__init__()
        self.parameters = 0
        self.tensors = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        del types
        if func is not torch.empty:
            return func(*args, **(kwargs or {}))
        try:
            out = func(*args, **{**(kwargs or {}), "device": "meta"})
        except RuntimeError:  # the byte count overflows 64 bits
            raise _TooLargeError from None
        self.parameters += out.numel()
        self.tensors += 1
        if self.parameters > MAX_PARAMETERS or self.tensors > MAX_TENSORS:
            raise _TooLargeError
        return out


class _TooLargeError(Exception):
    """Stops a build in the middle."""


def build_on_meta(component: Component, config: ModelConfig) -> nn.Module:
    """Return ``component`` in eval mode, parameters on the meta device, constants on the CPU.

    Raises:
        CheckpointError: the config describes more than 8·10⁹ parameters or 10⁴ tensors.
        ConfigError: the config describes something that cannot be built.
    """
    where = f"{component.folder}/config.json"
    try:
        with _ParametersOnMeta():
            module = component.build(config)
    except _TooLargeError:
        raise CheckpointError(
            f"{where} describes more than {MAX_PARAMETERS / 1e9:g} billion parameters or {MAX_TENSORS:,} tensors, "
            "which no device this tool serves can hold: correct its widths and layer counts"
        ) from None
    except _build_failures() as error:
        raise ConfigError(f"{where} describes a {component.name} that cannot be built: {_reason(error)}") from error
    return module.eval().requires_grad_(False)


def _build_failures() -> tuple[type[Exception], ...]:
    """Return the errors that layers and transformers' config raise for inconsistent values."""
    from huggingface_hub.errors import StrictDataclassError

    return (KeyError, RuntimeError, TypeError, ValueError, ZeroDivisionError, StrictDataclassError)


def _reason(error: Exception) -> str:
    """Return the last line of a message; transformers puts the name of its validator first."""
    if isinstance(error, KeyError):
        return f"unknown name {error}"
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
