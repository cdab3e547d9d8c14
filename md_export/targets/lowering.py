"""Steps that targets share: float16 copies of a module, globs of a recipe, silent converters, checked inputs."""

from __future__ import annotations

import copy
import logging
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from md_export.errors import ConversionError
from md_export.spec.scheme import QuantScheme
from md_export.spec.tensors import TensorSpec
from md_export.system.memory import release_tensors
from md_export.targets.contract import LoweringJob


def half_copy(module: nn.Module) -> nn.Module:
    """Copy ``module`` with float16 parameters; its inputs and outputs do not change.

    The copy needs half of the module's memory, because parameters are converted before ``deepcopy``.
    Casts are in hooks, not in a wrapper module, so that module paths stay the checkpoint's.
    Non-persistent buffers are tables that the modules compute (frequencies of the time embedding, causal
    mask); they stay float32, because at t = 999 a float16 frequency table changes the angle by up to
    0.24 rad.

    Raises:
        ConversionError: a parameter exceeds float16's range.
    """
    halves: dict[int, Any] = {id(p): _half(name, p) for name, p in module.named_parameters()}
    halves |= {id(b): _half(name, b) for name, b in _persistent_buffers(module)}
    copied = copy.deepcopy(module, halves)
    # Run first: a module's other hooks may pass inputs by name, where the casts would not find them.
    copied.register_forward_pre_hook(_to_half, prepend=True)
    copied.register_forward_hook(_to_float)
    return copied


def _persistent_buffers(module: nn.Module) -> list[tuple[str, Tensor]]:
    stored = module.state_dict(keep_vars=True)
    return [(name, b) for name, b in module.named_buffers() if name in stored]


def _half(name: str, value: Tensor) -> Tensor:
    if value.dtype != torch.float32:
        return value
    half = value.detach().half()
    if not torch.isfinite(half).all():
        raise ConversionError(
            f"{name} has values beyond float16's range (largest magnitude {value.abs().max().item():.4g}, "
            "limit 65504, or not finite): export this component as float32"
        )
    release_tensors([value])
    return nn.Parameter(half, requires_grad=False) if isinstance(value, nn.Parameter) else half


def _to_half(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    # Rank-1 inputs are timesteps, which float16 would round; the time embedding computes in float32.
    return tuple(x.half() if x.dtype == torch.float32 and x.ndim > 1 else x for x in inputs)


def _to_float(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]) -> Any:
    return tuple(value.float() for value in output) if isinstance(output, tuple) else output.float()


def example_of(job: LoweringJob) -> dict[str, Tensor]:
    """Return one golden input per name for tracing, in the order of the module's inputs."""
    return {spec.name: torch.from_numpy(np.array(job.example[spec.name])) for spec in job.inputs}


def check_surface(job: LoweringJob, inputs: Iterable[TensorSpec], outputs: Iterable[TensorSpec]) -> None:
    """Raise :class:`ConversionError` unless a converted model has the job's inputs and outputs, in any order."""
    found, wanted = ((*inputs, *outputs), (*job.inputs, *job.outputs))
    if Counter(found) != Counter(wanted):
        raise ConversionError(
            f"{job.component}: the converted model has the inputs and outputs {found}, not {wanted}; "
            "a rewrite changed the module's inputs or outputs"
        )


def check_module_globs(job: LoweringJob) -> None:
    """Raise :class:`ConversionError` for a glob that matches no module of the component."""
    check_globs(job.component, job.scheme, [path for path, _ in job.module.named_modules()])


def check_globs(component: str, scheme: QuantScheme, paths: Collection[str]) -> None:
    """Raise :class:`ConversionError` for a glob that matches none of ``paths``, all modules of the component."""
    for field, glob in _strays(scheme, paths):
        raise ConversionError(f"{component}: {field} glob {glob!r} matches no module; correct the recipe")


def check_weight_globs(job: LoweringJob, paths: Collection[str]) -> None:
    """Raise :class:`ConversionError` for a glob that matches none of ``paths``, the modules that have a weight."""
    for field, glob in _strays(job.scheme, paths):
        raise ConversionError(
            f"{job.component}: {field} pattern {glob!r} matches no convolution, linear or embedding module"
        )


def _strays(scheme: QuantScheme, paths: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield each glob that matches nothing and must match, with its field."""
    ruled = [glob for rule in scheme.rules if not rule.optional for glob in rule.modules]
    for field, globs in (("keep_float", scheme.keep_float), ("rules", ruled)):
        for glob in globs:
            if not any(fnmatchcase(path, glob) for path in paths):
                yield field, glob


@contextmanager
def quiet() -> Iterator[None]:
    """Drop Python warnings and log records below ERROR within the block.

    Standard error stays open: a message that C++ writes there before it aborts is the only trace of a crash.
    """
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
