"""Contents of a saved asset: operations, stored bytes by type, and where weights stayed float."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from md_export.errors import RuntimeFault, one_line
from md_export.targets.contract import Description
from md_export.targets.coreai.bindings import VENDOR_ERRORS, kind_of, operations, read_program
from md_export.targets.coreai.constants import element_of, is_constant, stored_bytes, values_of
from md_export.targets.coreai.quantize import takes_int8
from md_export.targets.coreai.save import read_notes
from md_export.targets.coreai.weights import Reader, path_of, readers_of, weights_of


def describe(path: Path) -> Description:
    """Read a saved asset without running it.

    Raises:
        RuntimeFault: it is no Core AI asset, or holds what no export does.
    """
    program = read_program(path)
    try:
        return _description(operations(program), read_notes(path))
    except VENDOR_ERRORS as error:
        raise RuntimeFault(f"{path.name} cannot be read: {one_line(error)}") from error


def _description(found: list[Any], notes: dict[str, str]) -> Description:
    constants = [op for op in found if is_constant(op)]
    weights = weights_of(found)
    stored: Counter[str] = Counter()
    for op in constants:
        stored[element_of(op).name] += stored_bytes(op)
    return Description(
        stored=dict(sorted(stored.items())),
        ops=dict(sorted(Counter(kind_of(op) for op in found if not is_constant(op)).items())),
        float_weights=tuple(path_of(readers) for op, readers in weights.items() if is_constant(op)),
        int8_weights=sum(_holds(op) == "int8" for op in weights),
        int8_inputs=_int8_inputs(weights),
        not_finite=tuple(_name(op, number) for number, op in enumerate(constants) if not _finite(op)),
        notes=notes,
    )


def _int8_inputs(weights: Mapping[Any, list[Reader]]) -> float:
    """Share of the convolutions and linears that take int8 activations."""
    products = [reader for readers in weights.values() for reader in readers if reader.is_product]
    return sum(map(takes_int8, products)) / max(1, len(products))


def _holds(op: Any) -> str:
    """Type of what is stored of a weight."""
    return element_of(op if is_constant(op) else op.operands[0].owner).name


def _name(op: Any, number: int) -> str:
    return path_of(readers_of(op)) or f"constant_{number}"


def _finite(op: Any) -> bool:
    return not element_of(op).name.startswith("float") or bool(np.isfinite(values_of(op)).all())
