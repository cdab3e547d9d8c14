"""up · down added to a weight, and the same beside the weight: the two must compute the same."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import sqrt
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from md_export.checkpoint.files import capped, shown
from md_export.checkpoint.lora.read import LoraFile, Parts, read_name, underscored
from md_export.errors import CheckpointError

_SHOWN: Final = 10
_LONGEST_NAME: Final = 200
_LARGEST_ALPHA: Final = 1e6

Layer = nn.Linear | nn.Conv2d


@dataclass(frozen=True)
class LowRank:
    """What one LoRA adds to one module's weight: ``scale`` · up · down.

    Attributes:
        module: path in its component.
        down: ``[r, in]``, or ``[r, in, k, k]`` of a convolution.
        up: ``[out, r]``, or ``[out, r, 1, 1]``.
        scale: alpha / r times the user's.
    """

    module: str
    down: Tensor
    up: Tensor
    scale: float


def changes_of(file: LoraFile, component: str, module: nn.Module) -> list[LowRank]:
    """What a LoRA adds to each layer of a component; ``module`` may be on the meta device.

    Raises:
        CheckpointError: a layer is not there, or is of another shape; names the nearest there is.
    """
    layers = {underscored(path): (path, layer) for path, layer in module.named_modules() if isinstance(layer, Layer)}
    modules = file.modules.get(component, {})
    strangers = [parts.name for name, parts in modules.items() if name not in layers]
    if strangers:
        raise CheckpointError(_unmatched(file, component, strangers, [path for path, _ in layers.values()]))
    misfits = [
        f"{shown(parts.name)}: {why} {component}.{layers[name][0]}, {list(layers[name][1].weight.shape)}"
        for name, parts in modules.items()
        if (why := _misfit(layers[name][1], parts))
    ]
    if misfits:
        lines = [f"{file.lora.name}: {len(misfits)} of its modules are of another model than this checkpoint's:"]
        raise CheckpointError("\n    ".join([*lines, *capped(misfits)]))
    return [_low_rank(file, component, *layers[name], parts) for name, parts in modules.items()]


def _misfit(layer: Layer, parts: Parts) -> str | None:
    """Why a LoRA's halves do not make the layer's weight."""
    if isinstance(layer, nn.Conv2d) and layer.groups > 1:
        return "no LoRA fits a convolution in groups:"
    down, up = parts.tensors["down"], parts.tensors["up"]
    kernel = tuple(layer.weight.shape[2:])
    # A 1×1 convolution and a linear layer are one thing, and some write the one for the other.
    fits = (
        (up.shape[0], down.shape[1]) == tuple(layer.weight.shape[:2])
        and up.shape[1] == down.shape[0]
        and _is_point(up.shape[2:])
        and (tuple(down.shape[2:]) == kernel or (_is_point(kernel) and _is_point(down.shape[2:])))
    )
    return None if fits else f"up {list(up.shape)} · down {list(down.shape)} does not make"


def _is_point(kernel: tuple[int, ...]) -> bool:
    return all(size == 1 for size in kernel)


def _low_rank(file: LoraFile, component: str, path: str, layer: Layer, parts: Parts) -> LowRank:
    shape, rank = tuple(layer.weight.shape), parts.tensors["down"].shape[0]
    down = parts.tensors["down"].reshape(rank, *shape[1:])
    up = parts.tensors["up"].reshape(shape[0], rank, *(1 for _ in shape[2:]))
    alpha = parts.tensors.get("alpha")
    own = _own_scale(file.config, component, path, rank) if alpha is None else float(alpha) / rank
    return LowRank(path, down, up, file.lora.factor * own)


def _own_scale(config: Mapping[str, object], component: str, path: str, rank: int) -> float:
    """alpha / rank of a module whose alpha is no tensor: by peft's config, else 1."""
    for prefix in (f"{component}.", ""):
        alpha, patterns = (config.get(prefix + field) for field in ("lora_alpha", "alpha_pattern"))
        if isinstance(patterns, dict):
            # peft reads these as regular expressions; names of modules are what is written.
            alpha = next((value for key, value in patterns.items() if f".{path}".endswith(f".{key}")), alpha)
        if isinstance(alpha, (int, float)) and abs(alpha) <= _LARGEST_ALPHA:
            return float(alpha) / (sqrt(rank) if config.get(f"{prefix}use_rslora") is True else rank)
    return 1.0


def _unmatched(file: LoraFile, component: str, names: list[str], paths: list[str]) -> str:
    lines = [f"{file.lora.name}: {len(names)} of its modules are not in this checkpoint's {component}:"]
    near = {underscored(path): path for path in paths}
    for name in names[:_SHOWN]:
        key = read_name(name)
        close = difflib.get_close_matches(key.module[:_LONGEST_NAME], near, n=1, cutoff=0.0) if key else []
        lines.append(f"{shown(name)} (nearest: {component}.{near[close[0]]})" if close else shown(name))
    if len(names) > _SHOWN:
        lines.append(f"… and {len(names) - _SHOWN} more")
    return "\n    ".join(lines) + "\n  it was trained for another model; give the checkpoint that it is for"


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
