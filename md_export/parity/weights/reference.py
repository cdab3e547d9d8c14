"""List the tensors that an artifact should store: a component's parameters after the rewrites, by module path.

Converters fold some constants further; :func:`_derived` lists these folds, each of a single module.
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
from md_export.checkpoint.modules import build_on_meta
from md_export.models.chunk_module import paths_of_other_chunks
from md_export.models.families import component_of
from md_export.models.patch_transformer import PatchEmbedding
from md_export.models.pixart import PixArt
from md_export.models.t5_encoder import T5Norm
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
# Buffers of rewritten modules and the parameters that they replace.
_STANDS_FOR: Final = {"scale": "weight", "shift": "bias", "phases": "weight"}
_NORMS: Final = (nn.GroupNorm, nn.LayerNorm, T5Norm)


@dataclass(frozen=True)
class Wanted:
    """One tensor that an artifact may store.

    Attributes:
        name: path in the rewritten module; ``conv.phases[1]`` for a part, ``norm.up·weight`` for a product.
        module: path of the module that owns the tensor.
        proves: parameters of the rewritten module, or parts of one, whose presence the tensor proves.
        is_parameter: whether the tensor is a parameter and not a table.
    """

    name: str
    module: str
    role: Role
    values: Float32
    proves: tuple[str, ...]
    is_parameter: bool = False


@dataclass(frozen=True)
class Reference:
    """All tensors that one component's artifact may store.

    Attributes:
        parameters: names of the rewritten module's parameters; one that the module splits is listed by its parts.
            Parameters without effect (a bias of zeros, a norm's factor of ones) are left out.
        folded: tensors of the checkpoint that the rewrites folded into others.
        norms: paths of modules that a target may keep in float without a request.
    """

    component: str
    wanted: tuple[Wanted, ...]
    parameters: frozenset[str]
    folded: frozenset[str]
    norms: frozenset[str]

    @cached_property
    def by_shape(self) -> dict[tuple[int, ...], list[Wanted]]:
        """Tensors by shape, without axes of length 1."""
        found: dict[tuple[int, ...], list[Wanted]] = defaultdict(list)
        for item in self.wanted:
            found[squeezed(item.values.shape)].append(item)
        return found


def prepare_reference(checkpoint: Checkpoint, recipe: Recipe, component: str, golden: Path) -> Reference:
    """Build the reference from the component's module as it was exported; memory-mapped float32 weights are not copied.

    Weights that were rounded with calibration are computed again from the export's ``golden`` cases, so that the stored
    weights are compared with the expected ones.

    Raises:
        CheckpointError: the weights cannot be read.
        RewriteError: the recipe's rewrites do not apply to this checkpoint.
        GoldenError: the golden cases are needed but cannot be read.
    """
    before = build_on_meta(component_of(checkpoint.config, component), checkpoint.config).state_dict()
    module = lowered_part(checkpoint, component, recipe, golden).module
    others = tuple(f"{path}." for path in paths_of_other_chunks(module))
    return reference_of(component, module, frozenset(name for name in before if not name.startswith(others)))


def reference_of(component: str, module: nn.Module, before: frozenset[str] = frozenset()) -> Reference:
    """Return the tensors that an artifact of ``module`` may store; ``before``: names of its tensors before rewrites."""
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
    """Split a tensor into the weights of separate convolutions: those of an upsampler or of a split convolution."""
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
    if isinstance(layer, PatchEmbedding) and layer.proj.bias is not None:
        # Core AI adds the convolution's bias to the table of positions; litert_torch, too, with channels last.
        for total in _sums(layer.table, layer.proj.bias[:, None, None]):
            for values in (total, total.permute(0, 2, 3, 1)):
                yield Wanted(_join(path, "table+bias"), path, "", _numpy(values), (_join(path, "proj.bias"),))
    if isinstance(layer, PixArt):
        # Core AI adds the last bias of the conditioning to the table that is added to it.
        own = _join(path, "scale_shift_table")
        for total in _sums(layer.scale_shift_table, layer.adaln_single.emb.timestep_embedder.linear_2.bias):
            yield Wanted(f"{own}+bias", path, "", _numpy(total), (own,))
    if isinstance(layer, SplitConv2d):
        # An ONNX graph stores the whole weight and splits it at run time.
        parts = tuple(_join(path, label) for label, _ in _parts(layer, "weight", layer.weight))
        yield Wanted(_join(path, "weight"), path, "weight", _numpy(layer.weight), parts, is_parameter=True)


def _sums(table: Tensor, bias: Any) -> tuple[Tensor, Tensor]:
    """Return the sum, and that of both in float16, as an artifact in float16 holds them."""
    return table + bias, table.half().float() + bias.half().float()


def _needed(path: str, layer: nn.Module) -> Iterator[str]:
    """Yield the names of parameters that change the layer's output; a converter omits the others."""
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
    """The tensor that a weight should equal, or the closest of a module's candidates, and how they differ."""

    tensor: Wanted
    misfit: Misfit


@dataclass(frozen=True)
class Match:
    """Result of matching one stored weight.

    Attributes:
        tensors: tensors that it equals within rounding, one for each module that reads it; empty if it is unknown.
        neutral: whether it is a bias of zeros or a factor of ones, written by a converter for a layer without one.
        mismatches: differences from the tensors of the modules that read it.
    """

    tensors: tuple[Wanted, ...]
    neutral: bool
    mismatches: tuple[Mismatch, ...]


def match(weight: StoredWeight, reference: Reference) -> Match:
    """Match a weight with the tensors of the modules that read it; with all tensors if none of those has its shape."""
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
    """Whether a weight is a shape or axes: integers without a scale, such as the four sizes that a reshape reads."""
    return weight.dtype in ("int32", "int64", "bool") and weight.grid is None and weight.palette is None


def _does_nothing(weight: StoredWeight, use: Use) -> bool:
    """Whether a weight adds zeros or multiplies by ones; a real bias or factor of the layer is then missing."""
    neutral = {"bias": 0.0, "weight": 1.0}.get(use.role)
    return neutral is not None and bool((weight.values == neutral).all())


def _candidates(use: Use, alike: Iterable[Wanted]) -> list[Wanted]:
    own = [item for item in alike if item.module in use.modules]
    return [item for item in own if not use.role or item.role in (use.role, "")]


def _first_fit(weight: StoredWeight, candidates: Iterable[Wanted]) -> tuple[list[Wanted], list[Mismatch]]:
    """Return the first candidate that the weight equals, else the mismatch with the closest candidate."""
    mismatches: list[Mismatch] = []
    for item in candidates:
        found = misfit(weight, item.values)
        if found is None:
            return [item], []
        mismatches.append(Mismatch(item, found))
    return [], sorted(mismatches, key=lambda item: item.misfit.values)[:1]
