"""Rounding errors of the weights and biases of all modules, in each form that a target has for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from md_export.engine.search.frontier import Form, Module
from md_export.engine.search.probe import Probe
from md_export.engine.search.sensitivity import input_sums, scheme_of, storage_in, stored_tensors
from md_export.targets.quantization.adjust import batches
from md_export.targets.quantization.gptq import InputSums, as_matrices, products


@dataclass(frozen=True)
class Error:
    """Rounding errors of one tensor of a module.

    Attributes:
        tensor: the weight or bias.
        values: ``[forms, elements]``, bfloat16 for weights, whose relative precision of 2⁻⁹ is far above what samples
            tell, and float32 for biases.
        start: place of the first form among the samples.
    """

    tensor: Tensor
    values: Tensor
    start: int


@dataclass(frozen=True)
class Errors:
    """Errors of the modules of each component, and the number of samples: one for each module and form."""

    by_component: Mapping[str, tuple[Error, ...]]
    count: int


def errors_of(probe: Probe, modules: Sequence[Module]) -> Errors:
    """Round each module in each of its forms that are not float; the probe's modules do not change."""
    found: dict[str, tuple[Error, ...]] = {}
    start, starts = 0, {}
    for module in modules:
        starts[module.key] = start
        start += len(_forms(module))
    for component in dict.fromkeys(module.component for module in modules):
        own = {module.path: module for module in modules if module.component == component}
        found[component] = tuple(
            error
            for path, sums in _with_sums(probe, component, own)
            for error in _errors(probe, own[path], sums, starts[component, path])
        )
    return Errors(found, start)


def _forms(module: Module) -> list[Form]:
    return [one.form for one in module.candidates if not one.form.is_float]


def _with_sums(probe: Probe, component: str, modules: Mapping[str, Module]) -> Iterator[tuple[str, InputSums | None]]:
    """Yield each path with the sums over its inputs that its rounding needs, of a few modules at a time."""
    left = dict.fromkeys(modules)
    if probe.recipe.schemes[component].is_adjusted:
        layers = [(path, layer) for path, layer in products(probe.parts[component].module) if path in modules]
        for batch in batches(layers):
            sums = input_sums(probe, component, [path for path, _ in batch])
            for path, _ in batch:
                yield path, sums.pop(path)
                del left[path]
    yield from left.items()


@torch.no_grad()
def _errors(probe: Probe, module: Module, sums: InputSums | None, start: int) -> Iterator[Error]:
    layer: nn.Module = probe.parts[module.component].module.get_submodule(module.path)
    base, values = probe.recipe.schemes[module.component], dict[str, list[Tensor]]()
    for form in _forms(module):
        storage = storage_in(probe, module.component, module.path, form)
        assert storage is not None  # noqa: S101 (the module was listed with the form)
        stored = stored_tensors(layer, storage, scheme_of(base, form), sums)
        changes = {name: value - getattr(layer, name) for name, value in stored.items()}
        for name, each in _short(layer, changes, sums).items():
            values.setdefault(name, []).append(each.flatten())
    for name, found in values.items():
        if any(bool(one.any()) for one in found):
            yield Error(getattr(layer, name), torch.stack(found), start)


def _short(layer: nn.Module, changes: dict[str, Tensor], sums: InputSums | None) -> dict[str, Tensor]:
    """Round the change of a weight to bfloat16, and have a corrected bias make up for the rounded one.

    A bias takes off the mean of what the weight's error does, which may be nearly all of it.
    """
    if "bias" not in changes:
        return {name: value.bfloat16() for name, value in changes.items()}
    weight, bias = changes["weight"], changes["bias"]
    if sums is not None and bool(bias.any()):
        left = as_matrices(layer, weight - weight.bfloat16().float()).double()
        bias = (bias.double() + (left @ sums.mean[..., None]).flatten()).float()
    return {"weight": weight.bfloat16(), "bias": bias}
