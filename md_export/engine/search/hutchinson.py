"""Noise powers of all modules and forms at once, from random projections of the Jacobian.

To first order, storing a module in another form changes the output by J·Δw: J is the Jacobian of the output with
respect to the module's weights and Δw their rounding error. For a random direction v with E[v·vᵀ] = I,

    E[(vᵀ·J·Δw)²] = ‖J·Δw‖²,

the noise power. One backward pass gives vᵀ·J for the weights of all modules, and a dot product for each module and form
is a sample without bias (Hutchinson, 1989, https://doi.org/10.1080/03610918908812806). With Gaussian v a sample has the
variance 2·‖J·Δw‖⁴, so the mean of n samples has a relative standard deviation of √(2/n).

HAWQ-V2 (arXiv 1911.03852) and HAWQ-V3 (arXiv 2011.10680) use the same estimator for the trace of a layer's Hessian and
multiply it by ‖Δw‖². That assumes errors without structure; rounding that makes errors good by later ones (GPTQ) leaves
them in directions on which the output hardly depends. Here Δw is the actual error.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from md_export.engine.search.frontier import Module
from md_export.engine.search.measurements import Sample
from md_export.engine.search.probe import Probe
from md_export.engine.search.rounding_errors import Error, errors_of
from md_export.engine.search.sensitivity import Probing, list_modules, probe_of
from md_export.engine.search.wiring import Wiring
from md_export.parity.golden.case import GoldenCase
from md_export.parity.rewritten_module import Rewritten

# Elements of an error that are converted to float32 at once.
_PORTION: Final = 1 << 20


@dataclass(frozen=True)
class SampleRequest:
    """Request for samples in one direction."""

    on: Probing
    direction: int


def sample(request: SampleRequest) -> Sample:
    """Take the samples of one direction; runs in any process.

    The first call in a process rounds all weights and keeps their errors, two bytes for each weight and form.
    """
    if not _ESTIMATORS or _ESTIMATORS[0][0] != request.on:
        _ESTIMATORS[:] = [(request.on, Estimator(probe_of(request.on), list_modules(request.on)))]
    return _ESTIMATORS[0][1].sample(request.direction)


class Estimator:
    """Takes samples of the noise powers of some modules, of any components of a probe."""

    def __init__(self, probe: Probe, modules: Sequence[Module]) -> None:
        self._probe = probe
        self._errors = errors_of(probe, modules)
        self._wirings: dict[str, Wiring] = {}

    def sample(self, direction: int) -> Sample:
        """Return the samples of one direction; the components are taken from the last to the first."""
        probe, errors = self._probe, self._errors
        case = probe.cases[direction % len(probe.cases)]
        generator = torch.Generator().manual_seed(direction)
        noise, own_noise = torch.zeros(2, errors.count, dtype=torch.float64)
        cotangents: dict[tuple[str, str], Tensor] = {}
        left = set(errors.by_component)
        for component, part in reversed(probe.parts.items()):
            if not left:
                break
            left -= {component}
            drawn = {name: torch.randn(value.shape, generator=generator) for name, value in part.wanted(case).items()}
            peak, power = probe.units(component, case)
            elements, slope = sum(value.numel() for value in drawn.values()), probe.picture_slope(component, case)
            if slope is None:
                of_picture = self._pulled(component, cotangents)
            else:
                of_picture = {name: value * torch.from_numpy(slope).float() for name, value in drawn.items()}
            own = [drawn] if component in errors.by_component and (slope is None or not slope.all()) else []
            with Projections(errors.by_component.get(component, ()), errors.count) as projections:
                passes = backward(part, case, [of_picture, *own])
                cotangents |= {(component, name): value for name, value in next(passes).items()}
                taken = projections.taken()
                noise += taken / (peak * case.picture.size)
                # Where nothing is clipped, the picture is half the image, and one pass serves both.
                own_noise += (projections.taken() if list(passes) else 4 * taken) / (power * elements)
        return Sample(direction, tuple(noise.tolist()), tuple(own_noise.tolist()))

    def _pulled(self, component: str, cotangents: Mapping[tuple[str, str], Tensor]) -> dict[str, Tensor]:
        if component not in self._wirings:
            self._wirings[component] = Wiring(self._probe, component, self._probe.cases[0])
        return self._wirings[component].pull_back(cotangents)


# Cache of the most recent estimator, as of the probe.
_ESTIMATORS: list[tuple[Probing, Estimator]] = []


class Projections:
    """Adds vᵀ·J·Δw for each form of each module while the context is entered and a backward pass runs.

    A gradient is dropped as soon as it is multiplied, so at no time are there more than a few.
    """

    def __init__(self, errors: Sequence[Error], count: int) -> None:
        self._sums = torch.zeros(count, dtype=torch.float64)
        # Modules may share a tensor.
        self._errors: dict[Tensor, list[Error]] = {}
        for error in errors:
            self._errors.setdefault(error.tensor, []).append(error)
        self._undo: list[Callable[[], object]] = []

    def __enter__(self) -> Projections:
        tensor: Any
        for tensor in self._errors:
            self._undo.append(functools.partial(tensor.requires_grad_, tensor.requires_grad))
            tensor.requires_grad_(True)
            self._undo.append(tensor.register_post_accumulate_grad_hook(self._add).remove)
        return self

    def __exit__(self, *_: object) -> None:
        for undo in self._undo:
            undo()

    def _add(self, tensor: Tensor) -> None:
        assert tensor.grad is not None  # noqa: S101 (the hook runs after it was computed)
        gradient, tensor.grad = tensor.grad.flatten(), None
        for error in self._errors[tensor]:
            place = slice(error.start, error.start + len(error.values))
            for begin in range(0, len(gradient), _PORTION):
                part = slice(begin, begin + _PORTION)
                self._sums[place] += (error.values[:, part].float() @ gradient[part]).double()

    def taken(self) -> Tensor:
        """Return the squares of the sums since the last call, ``[samples]``, float64."""
        squares = self._sums**2
        self._sums.zero_()
        return squares


def backward(
    part: Rewritten, case: GoldenCase, cotangents: Sequence[Mapping[str, Tensor]]
) -> Iterator[dict[str, Tensor]]:
    """Run a component forward once, and backward for each set of cotangents of its outputs.

    Yields:
        The cotangents of the inputs that are floats, by name; gradients of weights go to hooks.
    """
    given = part.inputs_of(case)
    inputs = {spec.name: torch.from_numpy(np.ascontiguousarray(given[spec.name])) for spec in part.inputs}
    for value in inputs.values():
        value.requires_grad_(value.is_floating_point())
    with recomputing(part.module):
        made = part.module(*inputs.values())
        outputs = dict(
            zip((spec.name for spec in part.outputs), made if isinstance(made, tuple) else (made,), strict=True)
        )
        for number, each in enumerate(cotangents, start=1):
            torch.autograd.backward(
                [outputs[name] for name in each], list(each.values()), retain_graph=number < len(cotangents)
            )
            yield {name: value.grad for name, value in inputs.items() if value.grad is not None}
            for value in inputs.values():
                value.grad = None


@contextmanager
def recomputing(module: nn.Module) -> Iterator[None]:
    """Keep only the inputs of a module's blocks for the backward pass, and compute their activations again in it.

    Blocks are items of lists without lists in them: residual blocks, transformer blocks, layers of an encoder.
    """
    lists = [one for one in module.modules() if isinstance(one, nn.ModuleList)]
    blocks = [block for one in lists for block in one if not any(isinstance(x, nn.ModuleList) for x in block.modules())]
    for block in blocks:
        vars(block)["forward"] = functools.partial(checkpoint, block.forward, use_reentrant=False)
    try:
        yield
    finally:
        for block in blocks:
            del vars(block)["forward"]
