"""A checkpoint's components as a recipe lowers them, in torch, with one module's weights replaced now and then."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from md_export.checkpoint import open_checkpoint
from md_export.components import COMPONENTS
from md_export.parity.cases import packed
from md_export.parity.golden_case import GoldenCase
from md_export.parity.prepare import one_step
from md_export.parity.rewritten import rewritten
from md_export.quantization.adjust import stored_values
from md_export.quantization.products import InputSums, is_derived
from md_export.quantization.rounding import rounded
from md_export.recipe import Recipe
from md_export.rewrites.upsample_to_four_convs import FourConv2d
from md_export.sampling import latent_from, picture_from
from md_export.scheme import QuantScheme
from md_export.storage import WeightStorage
from md_export.targets import TARGETS
from md_export.tensors import Array


class Probe:
    """All components, and what they make of golden cases."""

    def __init__(self, checkpoint_dir: Path, recipe: Recipe, cases: Sequence[GoldenCase]) -> None:
        checkpoint = open_checkpoint(checkpoint_dir)
        self.target = TARGETS[recipe.target].open()
        self.recipe = recipe
        self.cases = cases
        self.parts = {name: rewritten(checkpoint, name, recipe) for name in COMPONENTS}
        self._step = one_step(checkpoint.config)

    def noises(self, component: str) -> tuple[float, float]:
        """Noise power of the picture and of the component's output, relative to the squared peak and the power.

        Means over the cases. The component gets its golden inputs, and what follows it what it makes of them.
        """
        figures = [self._noises(component, case) for case in self.cases]
        picture, own = (float(np.mean(values)) for values in zip(*figures, strict=True))
        return picture, own

    def pictures(self) -> Iterator[tuple[Array, Array]]:
        """What the parts make of each case from its tokens to the picture, beside the golden picture."""
        for case in self.cases:
            made = self._run("text_encoder", {"input_ids": case.values.input_ids})
            yield self._picture("text_encoder", case, made), case.values.picture

    def _noises(self, component: str, case: GoldenCase) -> tuple[float, float]:
        part = self.parts[component]
        made, wanted = part.run(part.inputs_of(case)), part.output_of(case)
        picture = self._picture(component, case, made)
        peak = float(np.max(np.abs(case.values.picture))) ** 2
        power = float(np.mean(wanted.astype(np.float64) ** 2))
        return _error(picture, case.values.picture) / max(peak, _LEAST), _error(made, wanted) / max(power, _LEAST)

    def _picture(self, component: str, case: GoldenCase, made: Array) -> Array:
        """The picture of a case whose values are golden up to what the component gives."""
        values = case.values
        if component == "text_encoder":
            given = {"sample": values.noise, "timestep": values.timestep, "encoder_hidden_states": made}
            return self._picture("unet", case, self._run("unet", given))
        if component == "unet":
            folded = self.parts["unet"].outputs[0].name == "latent"
            latent = made if folded else latent_from(values.noise, made, self._step)
            return self._picture("vae_decoder", case, self._run("vae_decoder", {"latent": latent}))
        return picture_from(made)

    def _run(self, component: str, arrays: dict[str, Array]) -> Array:
        part = self.parts[component]
        return part.run(packed(self.recipe, part, arrays))


# Of a power, so that an output of zeros divides nothing.
_LEAST = 1e-30


def _error(made: Array, wanted: Array) -> float:
    return float(np.mean((made.astype(np.float64) - wanted.astype(np.float64)) ** 2))


@contextmanager
def stored(layer: Any, storage: WeightStorage, scheme: QuantScheme, sums: InputSums | None) -> Iterator[None]:
    """Put the stored values into a layer, and its own back; ``sums`` of its inputs, where rounding wants them."""
    own = {name: getattr(layer, name) for name in ("weight", "bias", "phases") if hasattr(layer, name)}
    if isinstance(layer, FourConv2d):
        layer.phases = torch.stack([rounded(layer, part, storage, "nearest", None) for part in layer.phases])
    else:
        plain = dataclasses.replace(scheme, rounding="nearest", bias_correction=False)
        values = stored_values(layer, storage, plain if is_derived(layer) else scheme, sums)
        layer.weight = nn.Parameter(values.weight, requires_grad=False)
        if values.bias is not None:
            layer.bias = nn.Parameter(values.bias, requires_grad=False)
    try:
        yield
    finally:
        for name, value in own.items():
            setattr(layer, name, value)
