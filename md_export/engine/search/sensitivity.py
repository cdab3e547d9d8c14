"""Sensitivity of the picture to the storage form of one module's weights, with all other weights unchanged.

The stored values are computed in torch as the target would store them, including calibrated rounding, and replace the
weight. Then the component and all later ones are run again on golden inputs. The effect of the weights is exact. Errors
of the runtime are not included; the verification of the built artifacts covers them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from math import isfinite, prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from md_export.checkpoint import open_checkpoint
from md_export.engine.search.frontier import Candidate, Form
from md_export.models.families import family_of
from md_export.models.sampling.sampler import Sampler, one_step
from md_export.models.values import MADE
from md_export.models.walk import Steps, Tensors, walk
from md_export.parity.golden.case import GoldenCase
from md_export.parity.golden.folder import read_golden
from md_export.parity.golden.surface import packed, unpacked
from md_export.parity.rewritten_module import Rewritten, rewritten
from md_export.rewrites.upsample_to_four_convs import FourConv2d
from md_export.spec.recipe import Recipe
from md_export.spec.scheme import QuantScheme, WeightStorage
from md_export.spec.tensors import Array, Arrays, joined
from md_export.targets import TARGETS
from md_export.targets.quantization.adjust import stored_values
from md_export.targets.quantization.gptq import InputSums, is_derived, products, rounded


class Probe:
    """All components as torch modules, with measurements of their outputs on golden cases."""

    def __init__(self, checkpoint_dir: Path, recipe: Recipe, cases: Sequence[GoldenCase]) -> None:
        checkpoint = open_checkpoint(checkpoint_dir)
        self.target = TARGETS[recipe.target].open()
        self.recipe = recipe
        self.cases = cases
        self._family = family_of(checkpoint.config)
        self._rows = self._family.required
        self._computed = ("sampler.", *(f"{row.name}." for row in self._rows))
        self.parts: dict[str, Rewritten] = {row.name: rewritten(checkpoint, row.name, recipe) for row in self._rows}
        self._sampler = Sampler(one_step(checkpoint.config))

    def noises(self, component: str) -> tuple[float, float]:
        """Return the noise power of the picture and of the component's output, as means over the cases.

        The former is relative to the squared peak of the picture, the latter to the power of the output. The component
        gets its golden inputs, and later components get its output.
        """
        figures = [self._noises(component, case) for case in self.cases]
        picture, own = (float(np.mean(values)) for values in zip(*figures, strict=True))
        return picture, own

    def pictures(self) -> Iterator[tuple[Array, Array]]:
        """Yield for each case the picture that the parts compute from its tokens, and the golden picture."""
        for case in self.cases:
            yield self._picture(case, {}), case.picture

    def _noises(self, component: str, case: GoldenCase) -> tuple[float, float]:
        part = self.parts[component]
        answers, wanted = part.answers(part.inputs_of(case)), part.output_of(case)
        before = takewhile(lambda name: name != component, self.parts)
        recorded = {name: self.parts[name].wanted(case) for name in before}
        picture = self._picture(case, {**recorded, component: answers})
        peak = float(np.max(np.abs(case.picture))) ** 2
        power = float(np.mean(wanted.astype(np.float64) ** 2))
        return _error(picture, case.picture) / max(peak, _LEAST), _error(joined(answers), wanted) / max(power, _LEAST)

    def _picture(self, case: GoldenCase, recorded: Mapping[str, Arrays]) -> Array:
        """Return the picture that the parts compute for a case; ``recorded`` outputs are used instead of running."""
        given = {key: value for key, value in case.values.items() if not key.startswith(self._computed)}
        (values,) = walk(self._family, self._rows, _Parts(self.parts, recorded), [given], self._sampler)
        return values[MADE.key]


@dataclass(frozen=True)
class _Parts:
    """Runs rewritten modules, or returns recorded outputs for some of them."""

    parts: Mapping[str, Rewritten]
    recorded: Mapping[str, Arrays]

    def run(self, component: str, batches: Sequence[Arrays]) -> Sequence[Arrays]:
        """Run a module, or return its recorded output."""
        part, known = self.parts[component], self.recorded.get(component)
        made = [part.answers(packed(part.recipe, part, batch)) if known is None else known for batch in batches]
        return [unpacked(part.recipe, part, outputs) for outputs in made]

    def take(self, steps: Steps, pictures: Sequence[Tensors]) -> None:
        """Run the sampling step for all pictures."""
        steps.take(self.run, pictures)


# Lower limit of a power used as a divisor, so that an all-zero output causes no division by zero.
_LEAST = 1e-30


def _error(made: Array, wanted: Array) -> float:
    return float(np.mean((made.astype(np.float64) - wanted.astype(np.float64)) ** 2))


def store(layer: Any, storage: WeightStorage, scheme: QuantScheme, sums: InputSums | None) -> None:
    """Replace a layer's weights by the stored values.

    ``sums``: sums over the layer's inputs, for calibrated rounding; None if the rounding does not need them.
    """
    if isinstance(layer, FourConv2d):
        layer.phases = torch.stack([rounded(layer, part, storage, "nearest", None) for part in layer.phases])
        return
    plain = dataclasses.replace(scheme, rounding="nearest", bias_correction=False)
    values = stored_values(layer, storage, plain if is_derived(layer) else scheme, sums)
    layer.weight = nn.Parameter(values.weight, requires_grad=False)
    if values.bias is not None:
        layer.bias = nn.Parameter(values.bias, requires_grad=False)


@contextmanager
def stored(layer: Any, storage: WeightStorage, scheme: QuantScheme, sums: InputSums | None) -> Iterator[None]:
    """Call :func:`store` for the time of the context, and restore the layer's weights afterwards."""
    own = {name: getattr(layer, name) for name in ("weight", "bias", "phases") if hasattr(layer, name)}
    store(layer, storage, scheme, sums)
    try:
        yield
    finally:
        for name, value in own.items():
            setattr(layer, name, value)


@dataclass(frozen=True)
class Probing:
    """Inputs of a worker's measurements.

    Attributes:
        cases: folder of the cases to measure on.
        step: stride through the cases; 2 for every other one.
        golden: folder of the golden cases.
        forms: forms that a module can have.
    """

    checkpoint: Path
    recipe: Recipe
    cases: Path
    step: int
    golden: Path
    forms: tuple[Form, ...]


@dataclass(frozen=True)
class ModuleRequest:
    """Request to measure one module."""

    on: Probing
    component: str
    path: str


def measure(request: ModuleRequest) -> tuple[Candidate, ...]:
    """Return one candidate per form that the target supports for the module; runs in any process."""
    return candidates(_probe(request.on), request.component, request.path, request.on.forms)


@dataclass(frozen=True)
class ListRequest:
    """Request to list all modules of some components."""

    on: Probing
    components: tuple[str, ...]


def list_modules(request: ListRequest) -> list[tuple[str, str, int]]:
    """Return component, path and number of stored elements of each module that can be stored in a non-float form."""
    probe = _probe(request.on)
    return [
        (component, path, stored_elements(layer))
        for component in request.components
        for path, layer in probe.parts[component].module.named_modules()
        if not probe.recipe.schemes[component].keeps_float(path)
        and any(_storage(probe, component, path, form) for form in request.on.forms)
    ]


# Cache of the most recent probe; a worker uses only one at a time.
_PROBES: list[tuple[Probing, Probe]] = []


def _probe(on: Probing) -> Probe:
    if not _PROBES or _PROBES[0][0] != on:
        _PROBES[:] = [(on, Probe(on.checkpoint, on.recipe, read_golden(on.cases).cases[:: on.step]))]
    return _PROBES[0][1]


def candidates(probe: Probe, component: str, path: str, forms: Sequence[Form]) -> tuple[Candidate, ...]:
    """Measure a module in each form that the target supports for it."""
    part, base = probe.parts[component], probe.recipe.schemes[component]
    layer = part.module.get_submodule(path)
    sums = _sums(probe, part, path) if base.is_adjusted else None
    found = []
    for form in forms:
        storage = _storage(probe, component, path, form)
        if storage is not None:
            with stored(layer, storage, scheme_of(base, form), sums):
                picture, own = probe.noises(component)
            # A form that makes the picture NaN or infinite is not a candidate.
            if isfinite(picture) and isfinite(own):
                found.append(Candidate(form, stored_bytes(layer, storage), picture, own))
        elif form.weights.startswith("float"):
            bits = int(form.weights.removeprefix("float"))
            found.append(Candidate(form, stored_elements(layer) * bits // 8, 0.0, 0.0))
    return tuple(found)


def _storage(probe: Probe, component: str, path: str, form: Form) -> WeightStorage | None:
    layer, base = probe.parts[component].module.get_submodule(path), probe.recipe.schemes[component]
    return probe.target.weight_storage(path, layer, scheme_of(base, form))


def scheme_of(base: QuantScheme, form: Form) -> QuantScheme:
    """Return the component's scheme for a module that is stored in ``form``."""
    return dataclasses.replace(base, rules=(form.rule(("*",)),)).for_module("")


def stored_bytes(layer: nn.Module, storage: WeightStorage) -> int:
    """Return the stored size of a layer's weight in bytes, including scales and tables."""
    return sum((storage.stored_bits(shape) + 7) // 8 for shape in _shapes(layer))


def stored_elements(layer: nn.Module) -> int:
    """Return the number of elements of a layer's weight as it is stored."""
    return sum(prod(shape) for shape in _shapes(layer))


def _shapes(layer: nn.Module) -> list[tuple[int, ...]]:
    weights = list(layer.phases) if isinstance(layer, FourConv2d) else [layer.get_parameter("weight")]
    return [tuple(weight.shape) for weight in weights]


def _sums(probe: Probe, part: Rewritten, path: str) -> InputSums | None:
    layer = dict(products(part.module)).get(path)
    if layer is None:
        return None
    sums = InputSums(layer)
    for case in probe.cases:
        part.run(part.inputs_of(case))
    sums.close()
    return sums
