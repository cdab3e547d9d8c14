"""Give a component inputs for styles, and compute each style's values for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from md_export.checkpoint import Checkpoint, open_checkpoint
from md_export.checkpoint.derived import adapted
from md_export.errors import RewriteError, UsageError
from md_export.parity.golden.surface import ReadInputs
from md_export.parity.rewritten_module import Rewritten, lora_factors, rewritten
from md_export.rewrites.lora_branches import Factors
from md_export.rewrites.lora_inputs import give_inputs, slot_among, slots_of, values_of
from md_export.spec.loras import SCALE_INPUT
from md_export.spec.recipe import Recipe
from md_export.spec.scheme import QuantScheme
from md_export.spec.style import StyleInput, style_file
from md_export.spec.tensors import Array, Arrays, TensorSpec, is_style_input, save_tensors


@dataclass(frozen=True)
class Styled:
    """A component with inputs for styles, and each style's values for these, by name of the style."""

    part: Rewritten
    values: Mapping[str, Mapping[str, Array]] = field(default_factory=dict)

    def save(self, out: Path) -> None:
        """Write the values of each style into an export's folder."""
        for style, values in self.values.items():
            path = out / style_file(style, self.part.component)
            path.parent.mkdir(parents=True, exist_ok=True)
            save_tensors(values, path)
            path.chmod(0o644)  # safetensors creates files that only their owner can read


@contextmanager
def style_checkpoint(checkpoint: Path, file: str) -> Iterator[Checkpoint]:
    """Open a checkpoint with one style fused in; ``file``: ``FILE`` or ``FILE:scale``."""
    with adapted(checkpoint, [file]) as folder:
        yield open_checkpoint(folder)


def styled(checkpoint: Checkpoint, name: str, recipe: Recipe, styles: Mapping[str, str]) -> Styled:
    """Build a component as :func:`rewritten`, with inputs for ``styles`` (``FILE`` or ``FILE:scale`` by name).

    Raises:
        RewriteError: a style changes something that inputs cannot change, or has a higher rank than the recipe says.
    """
    part = rewritten(checkpoint, name, recipe)
    if not styles:
        return Styled(part)
    factors = {style: _factors(checkpoint, name, recipe, style, file) for style, file in styles.items()}
    rank = recipe.style_rank or max((layer.rank for one in factors.values() for layer in one.values()), default=1)
    example = [torch.from_numpy(spec.zeros()) for spec in part.inputs]
    slots = slots_of(part.module, example, [*factors.values()], rank, recipe.target == "tflite")
    specs = give_inputs(part.module, slots)
    dtype = _dtype(recipe.schemes[name])
    values = {
        style: {key: value.numpy().astype(dtype) for key, value in values_of(slots, one).items()}
        for style, one in factors.items()
    }
    return Styled(dataclasses.replace(part, inputs=(*part.inputs, *specs)), values)


def _factors(checkpoint: Checkpoint, name: str, recipe: Recipe, style: str, file: str) -> dict[str, Factors]:
    with style_checkpoint(checkpoint.root, file) as changed:
        _, found = lora_factors(changed, name, recipe)
    for path, layer in found.items():
        if recipe.style_rank is not None and layer.rank > recipe.style_rank:
            raise RewriteError(
                f"the style {style} has rank {layer.rank} in {name} {path}, above the style rank {recipe.style_rank}; "
                "give a higher --style-rank"
            )
    return found


def values_for(
    checkpoint: Checkpoint, component: str, recipe: Recipe, inputs: Sequence[TensorSpec]
) -> dict[str, Array]:
    """Return the values of a style, the LoRAs of ``checkpoint``, for the inputs of an artifact.

    Raises:
        UsageError: the LoRAs change a layer that has no inputs, or have a higher rank than these.
        RewriteError: the LoRAs change something that inputs cannot change.
    """
    module, factors = lora_factors(checkpoint, component, recipe)
    values = {spec.name: torch.zeros(spec.shape) for spec in inputs if is_style_input(spec.name)}
    values[SCALE_INPUT] += 1.0
    named = " and ".join(lora.name for lora in checkpoint.loras)
    for path, own in factors.items():
        slot = slot_among(module.get_submodule(path), path, inputs, recipe.target == "tflite")
        if slot is None or (own.shift is not None and not slot.has_shift):
            what = path if slot is None else f"the bias of {path}"
            raise UsageError(
                f"{named} changes {what} of {component}, for which the export has no inputs; export again with it as a "
                "--style"
            )
        if own.rank > slot.rank:
            raise UsageError(
                f"{named} has rank {own.rank} in {component} {path}, the export's inputs have {slot.rank}; export "
                f"again with --style-rank {own.rank}"
            )
        values |= slot.packed(own)
    dtype = _dtype(recipe.schemes[component])
    return {name: value.numpy().astype(dtype) for name, value in values.items()}


def _dtype(scheme: QuantScheme) -> type[np.floating]:
    """Return the type of a style's values in its file: float16, unless the scheme stores and computes in float32."""
    exact = scheme.activations == "float32" and set(scheme.all_weights) == {"float32"}
    return np.float32 if exact else np.float16


class WithStyles(ReadInputs):
    """Calibration inputs, then the first ones again in each style, so that ranges cover the styles."""

    def __init__(self, inputs: Sequence[Arrays], values: Mapping[str, Mapping[str, Array]]) -> None:
        """Join ``inputs`` and each style's values."""
        self._inputs, self._values = inputs, [*values.values()]

    def __len__(self) -> int:
        return len(self._inputs) + len(self._values)

    def read(self, index: int) -> Arrays:
        """Read inputs without a style, then with one."""
        if index < len(self._inputs):
            return self._inputs[index]
        style = index - len(self._inputs)
        own = {name: value.astype(np.float32) for name, value in self._values[style].items()}
        return {**self._inputs[style % len(self._inputs)], **own}


def concerned(styles: Sequence[StyleInput], component: str) -> tuple[StyleInput, ...]:
    """Return the styles that change a component."""
    return tuple(style for style in styles if component in style.components)
