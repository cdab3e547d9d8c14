"""Compare LoRAs fused into a checkpoint's weights with LoRAs applied beside the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from md_export.checkpoint import Checkpoint
from md_export.checkpoint.files import hash_of_file
from md_export.checkpoint.weight_change import LOW_RANK, WeightChange
from md_export.errors import ParityError
from md_export.models.families import component_of
from md_export.parity.golden.case import GoldenCase
from md_export.parity.metrics import compare
from md_export.spec.manifest import AddedLora
from md_export.spec.tensors import Array

# Float32 adds W·x + s·up(down·x) in another order than (W + s·up·down)·x; measured: 120 to 135 dB over all layers.
_LEAST_SNR_DB: Final = 95.0


def added_loras(checkpoint: Checkpoint) -> tuple[AddedLora, ...]:
    """Return a checkpoint's LoRAs as the manifest records them."""
    of = checkpoint.loras_by_component()
    return tuple(
        AddedLora(
            lora.name, hash_of_file(lora.path, lora.name), lora.factor, tuple(name for name in of if lora in of[name])
        )
        for lora in checkpoint.loras
    )


def check_fusing(checkpoint: Checkpoint, case: GoldenCase, progress: Callable[[str], None]) -> None:
    """Compare each component that LoRAs change on a golden case: LoRAs fused into its weights, and beside them.

    Raises:
        ParityError: the two differ by more than float32 rounding.
    """
    for name, loras in checkpoint.loras_by_component().items():
        base, changes = checkpoint.without_loras(name)
        inputs = case.calls(name)[-1].inputs(name)
        given = tuple(
            torch.from_numpy(inputs[spec.name])
            for spec in component_of(checkpoint.config, name).input_specs(checkpoint.config)
        )
        named = f"{' and '.join(map(str, loras))} in {name}"
        check_fused(checkpoint.module(name), base, changes, given, named, progress)


def check_fused(
    fused: nn.Module,
    base: nn.Module,
    changes: list[WeightChange],
    inputs: tuple[Tensor, ...],
    what: str,
    progress: Callable[[str], None],
) -> None:
    """Raise ParityError if ``fused`` differs from ``base`` with ``changes`` applied beside its weights."""
    with torch.no_grad(), beside(base, changes):
        wanted: Array = base(*inputs).numpy()
    with torch.no_grad():
        made, without = fused(*inputs).numpy(), base(*inputs).numpy()
    snr_db, effect_db = compare(made, wanted).snr_db, compare(without, wanted).snr_db
    if not snr_db >= _LEAST_SNR_DB:
        raise ParityError(
            f"{what}: fused into the weights, the output differs from the output beside them ({snr_db:.1f} dB; "
            f"rounding leaves {_LEAST_SNR_DB:g} dB); this is an error of md-export, please report it with the file"
        )
    progress(f"{what}: fused equals unfused to {snr_db:.0f} dB; without it the output is at {effect_db:.0f} dB")


@contextmanager
def beside(module: nn.Module, changes: Iterable[WeightChange]) -> Iterator[None]:
    """Within the block, add the contribution of the changes to the output of each changed layer of ``module``.

    A LoRA runs as up(down(x)), the other forms as a layer of their difference; DoRA scales outputs or inputs.
    """
    layers, of_layer = dict(module.named_modules()), dict[str, list[WeightChange]]()
    for change in changes:
        of_layer.setdefault(change.module, []).append(change)
    with ExitStack() as hooks:
        for path, own in of_layer.items():
            hooks.callback(layers[path].register_forward_hook(_adder(own)).remove)
        yield


def _adder(changes: list[WeightChange]) -> Any:
    def add(layer: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> Tensor:
        done: list[WeightChange] = []
        own = getattr(layer, "bias", None)
        bias = torch.zeros(()) if own is None else _over_outputs(layer, own)
        for change in changes:
            if change.parameter == "bias":
                added = _over_outputs(layer, change.factor * change.delta(change.scale))
                made, bias = made + added, bias + added
            elif change.magnitude is None:
                made = made + change.factor * change.scale * _contribution(layer, change, given[0])
            else:
                made = made + change.factor * (_decomposed(layer, change, given[0], made - bias, done) + bias - made)
            done.append(change)
        return made

    return add


def _decomposed(layer: nn.Module, change: WeightChange, x: Tensor, made: Tensor, done: list[WeightChange]) -> Tensor:
    """Return a layer's output with DoRA and without bias; ``made``: the output after the other changes ``done``."""
    assert change.magnitude is not None  # noqa: S101
    weight: Tensor = layer.get_parameter("weight")
    for other in (one for one in done if one.parameter == "weight"):
        weight = other.applied(weight)
    ratio = change.magnitude.ratio(weight + change.delta(change.scale))
    if ratio.shape[0] > 1 or weight.shape[0] == 1:
        return _over_outputs(layer, ratio.flatten()) * (made + change.scale * _contribution(layer, change, x))
    scaled = x * (ratio.flatten() if isinstance(layer, nn.Linear) else ratio.reshape(1, -1, 1, 1))
    return _run(layer, weight, scaled) + change.scale * _contribution(layer, change, scaled)


def _contribution(layer: nn.Module, change: WeightChange, x: Tensor) -> Tensor:
    """Apply the unscaled difference of a weight to ``x``, through its low-rank factors if it has them."""
    parts = {part: tensor.float() for part, tensor in change.parts.items()}
    if change.form is LOW_RANK:
        up, down = parts["up"], parts["down"]
        if not isinstance(layer, nn.Conv2d):
            return F.linear(F.linear(x, down.flatten(1)), up.flatten(1))
        up = up.reshape(*up.shape[:2], 1, 1)
        if "mid" not in parts:
            down = down.reshape(down.shape[0], *change.shape[1:])
            return F.conv2d(_run(layer, down, x), up)
        return F.conv2d(_run(layer, parts["mid"], F.conv2d(x, down.reshape(*down.shape[:2], 1, 1))), up)
    delta = change.delta(1.0)
    if isinstance(layer, nn.GroupNorm):
        plain = F.group_norm(x, layer.num_groups, None, None, layer.eps)
        return plain * delta.reshape(1, -1, *(1 for _ in x.shape[2:]))
    if isinstance(layer, nn.LayerNorm):
        return F.layer_norm(x, layer.normalized_shape, None, None, layer.eps) * delta
    if isinstance(layer, nn.Embedding):
        return F.embedding(x, delta)
    return _run(layer, delta, x)


def _run(layer: nn.Module, weight: Tensor, x: Tensor) -> Tensor:
    """Run a linear layer or a convolution with another weight and without its bias."""
    if isinstance(layer, nn.Conv2d):
        return F.conv2d(x, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)
    return F.linear(x, weight)


def _over_outputs(layer: nn.Module, values: Tensor) -> Tensor:
    """Reshape one value per output channel so that it broadcasts over the layer's output."""
    return values.reshape(1, -1, 1, 1) if isinstance(layer, (nn.Conv2d, nn.GroupNorm)) else values
