"""What an artifact should store: the parameters of a component after the recipe's rewrites, by module path.

A converter folds some constants further; those folds are listed in :func:`_derived`, each from one module alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from md_export.checkpoint import Checkpoint
from md_export.checkpoint.build import build_on_meta
from md_export.models.families import component_of
from md_export.parity.rewritten_module import lowered_part
from md_export.parity.weights.rounding import Misfit, misfit
from md_export.rewrites.split_wide_conv2d import SplitConv2d, parts_of
from md_export.rewrites.staged_group_norm import StagedGroupNorm
from md_export.spec.recipe import Recipe
from md_export.targets.stored import Float32, Role, StoredWeight, Use, squeezed

_ROLES: Final[dict[str, Role]] = {
    "weight": "weight",
    "scale": "weight",
    "phases": "weight",
    "up": "weight",
    "down": "weight",
    "bias": "bias",
    "shift": "bias",
    "mask": "bias",
}
# A buffer that stands in a rewritten module for a parameter of it.
_STANDS_FOR: Final = {"scale": "weight", "shift": "bias", "phases": "weight"}
_NORMS: Final = (nn.GroupNorm, nn.LayerNorm)


@dataclass(frozen=True)
class Wanted:
    """One tensor that an artifact may store.

    Attributes:
        name: path in the rewritten module; ``conv.phases[1]`` for a part, ``norm.up·weight`` for a product.
        module: path of the module that owns it.
        proves: parameters of the rewritten module, or parts of one, that it stands for.
        is_parameter: it is one itself, and no table.
    """

    name: str
    module: str
    role: Role
    values: Float32
    proves: tuple[str, ...]
    is_parameter: bool = False


@dataclass(frozen=True)
class Reference:
    """All that one component's artifact may store.

    Attributes:
        parameters: of the rewritten module, one that it splits by its parts; those that do nothing (a bias of zeros, a
            norm's factor of ones) left out.
        folded: tensors of the checkpoint that the rewrites put into others.
        norms: paths of modules that a target may keep in float on its own.
    """

    component: str
    wanted: tuple[Wanted, ...]
    parameters: frozenset[str]
    folded: frozenset[str]
    norms: frozenset[str]

    @cached_property
    def by_shape(self) -> dict[tuple[int, ...], list[Wanted]]:
        """Tensors by shape, axes of length 1 left out."""
        found: dict[tuple[int, ...], list[Wanted]] = defaultdict(list)
        for item in self.wanted:
            found[squeezed(item.values.shape)].append(item)
        return found


def prepare_reference(checkpoint: Checkpoint, recipe: Recipe, component: str, golden: Path) -> Reference:
    """The component's module as the exporter saw it; memory-mapped float32 weights are not copied.

    Weights that were rounded with calibration are made again from the export's ``golden`` cases, so that what was
    stored is held against what should have been.

    Raises:
        CheckpointError: weights that cannot be read.
        RewriteError: the recipe's rewrites do not apply to this checkpoint.
        GoldenError: the cases are needed and cannot be read.
    """
    before = build_on_meta(component_of(checkpoint.config, component), checkpoint.config).state_dict()
    return reference_of(component, lowered_part(checkpoint, component, recipe, golden).module, frozenset(before))


def reference_of(component: str, module: nn.Module, before: frozenset[str] = frozenset()) -> Reference:
    """All that an artifact of ``module`` may store; ``before``: names of the tensors that it had before rewrites."""
    layers = dict(module.named_modules())
    with torch.no_grad():
        return Reference(
            component=component,
            wanted=tuple(item for path, layer in layers.items() for item in _of(path, layer)),
            parameters=frozenset(name for path, layer in layers.items() for name in _needed(path, layer)),
            folded=before - frozenset(module.state_dict()),
            norms=frozenset(path for path, layer in layers.items() if isinstance(layer, _NORMS)),
        )


def _of(path: str, layer: nn.Module) -> Iterator[Wanted]:
    parameters = dict(layer.named_parameters(recurse=False))
    for name, value in [*parameters.items(), *layer.named_buffers(recurse=False)]:
        role = _ROLES.get(name, "")
        for label, part in _parts(layer, name, value):
            stands_for = _join(path, _STANDS_FOR.get(name, label))
            yield Wanted(_join(path, label), path, role, _numpy(part), (stands_for,), name in parameters)
    yield from _derived(path, layer)


def _parts(layer: nn.Module, name: str, value: Tensor) -> list[tuple[str, Tensor]]:
    """Several convolutions in the graph are several weights in a file: of an upsampler, of one that is split."""
    parts: Iterable[Tensor]
    if name == "phases":
        parts = value
    elif isinstance(layer, SplitConv2d) and name == "weight":
        parts = value.chunk(parts_of(layer), dim=1)
    else:
        return [(name, value)]
    return [(f"{name}[{index}]", part) for index, part in enumerate(parts)]


def _derived(path: str, layer: Any) -> Iterator[Wanted]:
    if isinstance(layer, StagedGroupNorm) and layer.weight is not None:
        product = layer.up * layer.weight[:, None, None, None]
        yield Wanted(_join(path, "up·weight"), path, "weight", _numpy(product), (_join(path, "weight"),))
    if isinstance(layer, SplitConv2d):
        # ONNX splits it when the graph is run.
        parts = tuple(_join(path, label) for label, _ in _parts(layer, "weight", layer.weight))
        yield Wanted(_join(path, "weight"), path, "weight", _numpy(layer.weight), parts, is_parameter=True)


def _needed(path: str, layer: nn.Module) -> Iterator[str]:
    """Parameters that change what the layer computes; a converter leaves the others out."""
    neutral = {"bias": 0.0, **({"weight": 1.0} if isinstance(layer, _NORMS) else {})}
    for name, value in layer.named_parameters(recurse=False):
        if name not in neutral or bool((value != neutral[name]).any()):
            yield from (_join(path, label) for label, _ in _parts(layer, name, value))


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _numpy(value: Tensor) -> Float32:
    array: Float32 = value.detach().to(torch.float32).numpy()
    return array


@dataclass(frozen=True)
class Mismatch:
    """The tensor that a weight should be, or comes closest to where the module has several, and what is wrong."""

    tensor: Wanted
    misfit: Misfit


@dataclass(frozen=True)
class Match:
    """What a stored weight was found to be.

    Attributes:
        tensors: those that it equals within rounding, one for each module that reads it; none where it is unknown.
        neutral: it is a bias of zeros or a factor of ones, which a converter writes where a layer has none.
        mismatches: why it is not what a module that reads it has.
    """

    tensors: tuple[Wanted, ...]
    neutral: bool
    mismatches: tuple[Mismatch, ...]


def match(weight: StoredWeight, reference: Reference) -> Match:
    """Compare with what the reading modules have; where none has a tensor of this shape, with all of them."""
    alike = [] if _counts(weight) else reference.by_shape.get(squeezed(weight.values.shape), [])
    found: list[Wanted] = []
    mismatches: list[Mismatch] = []
    neutral = [use for use in weight.uses if _does_nothing(weight, use)]
    known = False
    for use in weight.uses:
        candidates = [] if use in neutral else _candidates(use, alike)
        if not candidates:
            continue
        known = True
        fitting, wrong = _first_fit(weight, candidates)
        found += fitting
        mismatches += wrong
    if not known and not neutral:
        found, _ = _first_fit(weight, alike)
    return Match(tuple(found), bool(neutral), tuple(mismatches))


def _counts(weight: StoredWeight) -> bool:
    """Whether it is a shape or axes: whole numbers without a step, such as the four sizes that a reshape reads."""
    return weight.dtype in ("int32", "int64", "bool") and weight.grid is None and weight.palette is None


def _does_nothing(weight: StoredWeight, use: Use) -> bool:
    """Whether it adds zeros or multiplies with ones; a true bias or factor is missing then."""
    neutral = {"bias": 0.0, "weight": 1.0}.get(use.role)
    return neutral is not None and bool((weight.values == neutral).all())


def _candidates(use: Use, alike: Iterable[Wanted]) -> list[Wanted]:
    own = [item for item in alike if item.module in use.modules]
    return [item for item in own if not use.role or item.role in (use.role, "")]


def _first_fit(weight: StoredWeight, candidates: Iterable[Wanted]) -> tuple[list[Wanted], list[Mismatch]]:
    """The first tensor that the weight equals, or what is wrong with it as the closest of them."""
    mismatches: list[Mismatch] = []
    for item in candidates:
        found = misfit(weight, item.values)
        if found is None:
            return [item], []
        mismatches.append(Mismatch(item, found))
    return [], sorted(mismatches, key=lambda item: item.misfit.values)[:1]
