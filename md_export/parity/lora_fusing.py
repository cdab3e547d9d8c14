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
from md_export.checkpoint.lora import LowRank
from md_export.errors import ParityError
from md_export.models.families import component_of
from md_export.parity.golden.case import GoldenCase
from md_export.parity.metrics import compare
from md_export.spec.manifest import AddedLora
from md_export.spec.tensors import Array

# Rounding: float32 adds W·x + s·up(down·x) in another order than (W + s·up·down)·x, 120 to 135 dB over all layers.
_LEAST_SNR_DB: Final = 95.0


def added_loras(checkpoint: Checkpoint) -> tuple[AddedLora, ...]:
    """Return a checkpoint's LoRAs as the manifest records them."""
    of = checkpoint.loras_by_component()
    return tuple(
        AddedLora(lora.name, hash_of_file(lora.path), lora.factor, tuple(name for name in of if lora in of[name]))
        for lora in checkpoint.loras
    )


def check_fusing(checkpoint: Checkpoint, case: GoldenCase, progress: Callable[[str], None]) -> None:
    """Compare each component that LoRAs change on a golden case's inputs: LoRAs fused into its weights or beside them.

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
    changes: list[LowRank],
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
            f"{what}: fused into the weights it computes another output than beside them ({snr_db:.1f} dB, at least "
            f"{_LEAST_SNR_DB:g} dB is float32 rounding); this is an error of md-export, please report it with the file"
        )
    progress(f"{what}: fused equals unfused to {snr_db:.0f} dB; without it the output is at {effect_db:.0f} dB")


@contextmanager
def beside(module: nn.Module, changes: Iterable[LowRank]) -> Iterator[None]:
    """Add ``scale`` · up(down(x)) to the output of each changed layer of ``module`` within the block."""
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
