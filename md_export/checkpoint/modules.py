"""Build components on the meta device, and match stored tensors with their parameters.

Constants are computed, and absurd sizes are refused. One error lists all tensors that do not match in name or shape.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from md_export.checkpoint.files import capped, shown
from md_export.errors import CheckpointError, ConfigError
from md_export.models.config import ModelConfig
from md_export.models.graph import Component, Family
from md_export.system.memory import in_a_file, release_tensors

MAX_PARAMETERS: Final = 8_000_000_000
# More layers take seconds and gigabytes even if they are narrow; MobileDiffusion's UNet has 700 tensors.
MAX_TENSORS: Final = 10_000


# There is nothing to draw on the meta device; torch would import its compiler for it, which takes seconds.
_DRAWS: Final = (nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_, Tensor.normal_, Tensor.uniform_)


class _ParametersOnMeta(TorchFunctionMode):
    """Redirect ``torch.empty``, which allocates all parameters, to the meta device and count the elements.

    Constants (time frequencies, the causal mask) come from other functions and stay on the CPU, because no file
    contains them.
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
        if func in _DRAWS and (drawn := args[0] if args else (kwargs or {})["tensor"]).is_meta:
            return drawn
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
    """The module is too large; stops the build."""


def build_on_meta(component: Component, config: ModelConfig) -> nn.Module:
    """Return ``component`` in eval mode, with parameters on the meta device and constants on the CPU.

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
            "more than any supported device can hold: correct its widths and layer counts"
        ) from None
    except _BUILD_FAILURES as error:
        raise ConfigError(f"{where} describes a {component.name} that cannot be built: {_reason(error)}") from error
    return module.eval().requires_grad_(False)


# Errors that layers raise for inconsistent values.
_BUILD_FAILURES: Final = (KeyError, RuntimeError, TypeError, ValueError, ZeroDivisionError)


def _reason(error: Exception) -> str:
    """Return the last line of a message."""
    if isinstance(error, KeyError):
        return f"unknown name {error}"
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()


Shape = tuple[int, ...]

# AutoencoderKL's attention before diffusers 0.17.
_OLD_ATTENTION: Final[Mapping[str, str]] = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLD_ATTENTION_KEY: Final = re.compile(r"(\.mid_block\.attentions\.0\.)(query|key|value|proj_attn)\.")


def _own_name(folder: str, name: str) -> str:
    """Return the current name of a tensor stored in ``folder``, which may have an older name."""
    if folder.startswith("text_encoder"):
        return name.removeprefix("text_model.")
    if folder == "vae":
        return _OLD_ATTENTION_KEY.sub(lambda match: f"{match[1]}{_OLD_ATTENTION[match[2]]}.", name)
    return name


def own_tensors(family: Family, component: Component, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return ``stored`` by the component's parameter names, without tensors of other components in the same file."""
    others = tuple(
        prefix
        for other in family.components
        if other.folder == component.folder and other.name != component.name
        for prefix in other.key_prefixes
    )
    tensors: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        own = _own_name(component.folder, name)
        if own.startswith(others):
            continue
        if own in tensors:
            raise CheckpointError(
                f"{component.name}: the weights have {shown(own)} twice, with an old and a new name: remove one"
            )
        tensors[own] = tensor
    return tensors


@dataclass(frozen=True)
class KeyDifference:
    """Tensors of one component that are missing in its files, additional, or of another shape."""

    component: Component
    missing: tuple[tuple[str, Shape], ...]
    extra: tuple[tuple[str, str | None], ...]
    reshaped: tuple[tuple[str, Shape, Shape], ...]

    def __bool__(self) -> bool:
        return bool(self.missing or self.extra or self.reshaped)

    def __str__(self) -> str:
        config = f"{self.component.folder}/config.json"
        lines = [
            f"{self.component.name}: the weights do not fit {config} ({len(self.missing)} missing, "
            f"{len(self.extra)} extra, {len(self.reshaped)} of another shape)"
        ]
        lines += _group("missing", [f"{name} {list(shape)}" for name, shape in self.missing])
        lines += _group(
            "extra", [shown(name) + (f" (did you mean {hint}?)" if hint else "") for name, hint in self.extra]
        )
        lines += _group(
            "another shape",
            [f"{shown(name)}: stored {list(is_)}, config says {list(should)}" for name, is_, should in self.reshaped],
        )
        return "\n".join(lines)


def layers_of(module: nn.Module) -> tuple[str, ...]:
    """Return the paths of a module's convolutions and linear layers in declaration order."""
    return tuple(path for path, layer in module.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear))


def difference(component: Component, expected: Mapping[str, Shape], stored: Mapping[str, Shape]) -> KeyDifference:
    """Return the difference in names and shapes; both mappings use the component's parameter names."""
    missing = tuple((name, shape) for name, shape in expected.items() if name not in stored)
    extra = sorted(name for name in stored if name not in expected)
    near = [name for name, _ in missing] or list(expected)
    hints = {name: difflib.get_close_matches(name, near, n=1, cutoff=0.7) for name in extra[:20] if len(name) < 200}
    reshaped = [(name, stored[name], shape) for name, shape in expected.items() if stored.get(name, shape) != shape]
    with_hints = [(name, next(iter(hints.get(name, [])), None)) for name in extra]
    return KeyDifference(component, missing, tuple(with_hints), tuple(reshaped))


def _group(title: str, lines: list[str]) -> list[str]:
    return [f"  {title}:", *(f"    {line}" for line in capped(lines))] if lines else []


def as_float32(component: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return all tensors as contiguous float32 in mapped files, with their pages released from memory.

    Tensors with another dtype or layout are copied, large ones to scratch files.

    Raises:
        CheckpointError: a tensor has NaN or Inf.
    """
    converted: dict[str, Tensor] = {}
    broken: list[str] = []
    for name, tensor in tensors.items():
        own = tensor.to(torch.float32).contiguous()
        converted[name] = own if own is tensor else in_a_file(own)
        if not torch.isfinite(converted[name]).all():
            nans = int(converted[name].isnan().sum())
            infinities = int(converted[name].isinf().sum())
            broken.append(f"{name}: {nans} NaN and {infinities} Inf among {tensor.numel()} values")
        release_tensors([tensor, converted[name]])
    if broken:
        what = f"{component}: {len(broken)} tensors have values that are not finite; "
        advice = "use a checkpoint from before training diverged, or copy it again:"
        raise CheckpointError("\n    ".join([what + advice, *capped(broken)]))
    return converted
