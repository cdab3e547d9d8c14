"""Every constant of a saved package, decompressed, with the torch modules that read it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from md_export.errors import RuntimeFault
from md_export.spec.scheme import QuantScheme
from md_export.targets.coreml.constants import Constants
from md_export.targets.coreml.decompress import DECODERS
from md_export.targets.coreml.mil.package import Package
from md_export.targets.coreml.modules import read_modules
from md_export.targets.coreml.package import main_operations, read_spec
from md_export.targets.coreml.storage import pays
from md_export.targets.coreml.weights import LEAST_ELEMENTS, WEIGHT_INPUTS
from md_export.targets.stored import Role, StoredWeight, Use

_ROLES: Final[dict[tuple[str, str], Role]] = {
    **{(kind, "weight"): "weight" for kind in ("conv", "conv_transpose", "linear")},
    **{(kind, "bias"): "bias" for kind in ("conv", "conv_transpose", "linear")},
    **{(kind, "gamma"): "weight" for kind in ("layer_norm", "batch_norm", "instance_norm")},
    **{(kind, "beta"): "bias" for kind in ("layer_norm", "batch_norm", "instance_norm")},
    # Of a multiplication and addition that became a batch norm: zeros and ones.
    ("batch_norm", "mean"): "bias",
    ("batch_norm", "variance"): "weight",
    ("gather", "x"): "weight",
    ("matmul", "y"): "weight",
    ("mul", "y"): "weight",
    ("add", "y"): "bias",
}
# Axis of a weight's output channels; the first but for a transposed convolution.
_MADE: Final = {"conv_transpose": 1}


class _Reader(NamedTuple):
    """An operation and the input through which it takes a value."""

    op: Any
    role: str


def stored_weights(path: Path, scheme: QuantScheme) -> Iterator[StoredWeight]:
    """Every constant array and every decompressed weight, one at a time.

    Raises:
        ArtifactError, RuntimeFault: no readable package, or a weight that cannot be decompressed.
    """
    spec, package = read_spec(path), Package(path)
    modules, constants = read_modules(spec), Constants(main_operations(spec), package.weights, DECODERS)
    readers = _readers(main_operations(spec))
    try:
        for name in constants.names:
            weight = constants.decode(name)
            if weight.parts:
                yield _placed(weight, readers[name], modules, scheme)
    except (ValueError, KeyError, IndexError, TypeError, RuntimeError) as error:
        raise RuntimeFault(f"{path.name}: a weight cannot be decompressed: {error}; export it again") from error


def _readers(operations: Any) -> dict[str, list[_Reader]]:
    readers: dict[str, list[_Reader]] = defaultdict(list)
    for op in operations:
        for role, bound in op.inputs.items():
            for argument in bound.arguments:
                readers[argument.name].append(_Reader(op, role))
    return readers


def _placed(weight: StoredWeight, readers: list[_Reader], modules: dict[str, str], scheme: QuantScheme) -> StoredWeight:
    """With who reads it, in torch's layout, and whether the scheme speaks of it."""
    uses = tuple(dict.fromkeys(_use(reader, modules) for reader in readers))
    schemes = [scheme.for_module(module) for reader in readers for module in _use(reader, modules).modules]
    promised = any(_is_promised(weight, *item) for item in zip(readers, schemes, strict=True))
    placed = replace(weight, uses=uses, promised=promised)
    turned = any(reader.op.type == "matmul" and reader.role == "y" and not _is_turned(reader.op) for reader in readers)
    return _transposed(placed) if turned and weight.values.ndim == 2 else placed


def _use(reader: _Reader, modules: dict[str, str]) -> Use:
    module = modules.get(reader.op.outputs[0].name, "") if reader.op.outputs else ""
    return Use((module,), _ROLES.get((reader.op.type, reader.role), ""))


def _is_promised(weight: StoredWeight, reader: _Reader, scheme: QuantScheme) -> bool:
    """Whether compression concerns it: multiplied with or looked up, and larger than a palette of it.

    ``scheme``: of the module that reads it.
    """
    shape = weight.values.shape
    if reader.role not in WEIGHT_INPUTS.get(reader.op.type, ()) or len(shape) < 2 or prod(shape) < LEAST_ELEMENTS:
        return False
    compressed = weight.palette is not None
    return compressed or pays(shape, _MADE.get(reader.op.type, 0), 2 if weight.half else 4, scheme)


def _is_turned(op: Any) -> bool:
    bound = op.inputs["transpose_y"].arguments
    return bool(bound and any(item.value.immediateValue.tensor.bools.values[:1] == [True] for item in bound))


def _transposed(weight: StoredWeight) -> StoredWeight:
    grid = weight.grid and replace(weight.grid, steps=weight.grid.steps.T)
    palette = weight.palette and replace(weight.palette, tables=np.swapaxes(weight.palette.tables, 0, 1))
    kept = None if weight.kept is None else weight.kept.T
    return replace(weight, values=weight.values.T, grid=grid, palette=palette, kept=kept)
