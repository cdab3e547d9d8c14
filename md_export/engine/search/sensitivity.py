"""Sensitivity of the picture to the storage form of one module's weights, with all other weights unchanged.

The stored values are computed in torch as the target would store them, including calibrated rounding, and replace the
weight. Then the component and all later ones are run again on golden inputs. The effect of the weights is exact, and
costs one pass for each form; :mod:`md_export.engine.search.hutchinson` estimates it for all modules and forms at once.
Errors of the runtime are not included; the verification of the built artifacts covers them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite, prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from md_export.engine.search.frontier import Candidate, Form, Module
from md_export.engine.search.measurements import Pass
from md_export.engine.search.probe import Probe
from md_export.parity.golden.folder import read_golden
from md_export.rewrites.upsample_to_four_convs import FourConv2d
from md_export.spec.recipe import Recipe
from md_export.spec.scheme import QuantScheme, WeightStorage
from md_export.targets.quantization.adjust import stored_values
from md_export.targets.quantization.gptq import InputSums, is_derived, products, rounded


def stored_tensors(
    layer: Any, storage: WeightStorage, scheme: QuantScheme, sums: InputSums | None
) -> dict[str, Tensor]:
    """Return a layer's tensors as they are stored, by name: ``phases``, or ``weight`` and ``bias`` where it has one.

    ``sums``: sums over the layer's inputs, for calibrated rounding; None if the rounding does not need them.
    """
    if isinstance(layer, FourConv2d):
        return {"phases": torch.stack([rounded(layer, part, storage, "nearest", None) for part in layer.phases])}
    plain = dataclasses.replace(scheme, rounding="nearest", bias_correction=False)
    values = stored_values(layer, storage, plain if is_derived(layer) else scheme, sums)
    return {"weight": values.weight} | ({} if values.bias is None else {"bias": values.bias})


def store(layer: Any, storage: WeightStorage, scheme: QuantScheme, sums: InputSums | None) -> None:
    """Replace a layer's tensors by the stored ones, see :func:`stored_tensors`."""
    for name, value in stored_tensors(layer, storage, scheme, sums).items():
        setattr(layer, name, value if name == "phases" else nn.Parameter(value, requires_grad=False))


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
        components: components to choose forms for.
        cases: folder of the cases to measure on.
        step: stride through the cases; 2 for every other one.
        golden: folder of the golden cases.
        forms: forms that a module can have.
    """

    checkpoint: Path
    recipe: Recipe
    components: tuple[str, ...]
    cases: Path
    step: int
    golden: Path
    forms: tuple[Form, ...]


@dataclass(frozen=True)
class PassRequest:
    """Request to measure one module in one form."""

    on: Probing
    component: str
    path: str
    form: Form


def measure(request: PassRequest) -> Pass:
    """Measure a module in a form that the target supports for it; runs in any process."""
    probe = probe_of(request.on)
    noises = noises_of(probe, request.component, request.path, request.form)
    picture, own = noises if all(map(isfinite, noises)) else (None, None)
    return Pass(request.component, request.path, request.form, picture, own)


def noises_of(probe: Probe, component: str, path: str, form: Form) -> tuple[float, float]:
    """Return what :meth:`Probe.noises` measures while a module is stored in a form that is not float."""
    part, base = probe.parts[component], probe.recipe.schemes[component]
    layer, storage = part.module.get_submodule(path), storage_in(probe, component, path, form)
    assert storage is not None, f"{component} {path}: {form.label} is no form of it"  # noqa: S101
    sums = input_sums(probe, component, [path]).get(path) if base.is_adjusted else None
    with stored(layer, storage, scheme_of(base, form), sums):
        return probe.noises(component)


def list_modules(on: Probing) -> tuple[Module, ...]:
    """Return each module that can be stored in a non-float form, with its forms and their bytes, all without noise."""
    probe = probe_of(on)
    return tuple(
        Module(component, path, stored_elements(layer), found)
        for component in on.components
        for path, layer in probe.parts[component].module.named_modules()
        if not probe.recipe.schemes[component].keeps_float(path)
        and (found := tuple(_candidates(probe, component, path, on.forms)))
    )


def _candidates(probe: Probe, component: str, path: str, forms: Sequence[Form]) -> Iterator[Candidate]:
    """Yield candidates without noise; none where a module can only be float."""
    layer = probe.parts[component].module.get_submodule(path)
    storages = {form: storage_in(probe, component, path, form) for form in forms}
    for form, storage in storages.items() if any(storages.values()) else ():
        if storage is not None:
            yield Candidate(form, stored_bytes(layer, storage), 0.0, 0.0)
        elif form.is_float:
            bits = int(form.weights.removeprefix("float"))
            yield Candidate(form, stored_elements(layer) * bits // 8, 0.0, 0.0)


# Cache of the most recent probe; a worker uses only one at a time.
_PROBES: list[tuple[Probing, Probe]] = []


def probe_of(on: Probing) -> Probe:
    """Return the probe of the measurements; it is kept until the next one is asked for."""
    if not _PROBES or _PROBES[0][0] != on:
        _PROBES[:] = [(on, Probe(on.checkpoint, on.recipe, read_golden(on.cases).cases[:: on.step]))]
    return _PROBES[0][1]


def storage_in(probe: Probe, component: str, path: str, form: Form) -> WeightStorage | None:
    """Return how the target stores a module's weight in a form; None if it has no such form, or it is float."""
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


def input_sums(probe: Probe, component: str, paths: Collection[str]) -> dict[str, InputSums]:
    """Return sums over the inputs of those modules that are products, from one pass over the probe's cases."""
    part = probe.parts[component]
    found = {path: InputSums(layer) for path, layer in products(part.module) if path in paths}
    for case in probe.cases if found else ():
        part.run(part.inputs_of(case))
    for sums in found.values():
        sums.close()
    return found
