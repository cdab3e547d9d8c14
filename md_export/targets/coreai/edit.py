"""Change what a Core AI asset stores, for the gate's self-test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from md_export.targets.coreai.bindings import dialect, ir, kind_of, operations, read_program
from md_export.targets.coreai.constants import (
    element_of,
    held_value,
    packed,
    shape_of,
    unpacked,
    values_of,
)
from md_export.targets.coreai.save import read_custom, write_program
from md_export.targets.coreai.stored import decoded
from md_export.targets.coreai.weights import DECODERS
from md_export.targets.editing import Constant

Role = Literal["weight", "scale", "palette"]
_OPERANDS: Final[dict[tuple[str, int], Role]] = {
    ("blockwise_shift_scale", 1): "scale",
    ("lut_to_dense", 1): "palette",
}


@contextmanager
def edit(path: Path) -> Iterator[list[Constant]]:
    """Every constant in the order in which operations take it; what was written in place is saved in the end."""
    program = read_program(path)
    held = {f"constant_{number}": op for number, op in enumerate(_in_order(operations(program)))}
    constants = [_constant(name, op) for name, op in held.items()]
    yield constants
    with program._module._mlir_module.context, ir.Location.unknown():
        for constant in constants:
            _write(constant, held[constant.name])
    write_program(program, path, read_custom(path))


def _in_order(found: list[Any]) -> list[Any]:
    taken = [operand.owner for op in found for operand in op.operands]
    return list(dict.fromkeys(owner for owner in taken if getattr(owner, "name", "") == "coreai.constant"))


def _constant(name: str, op: Any) -> Constant:
    element = element_of(op)
    if element.bits < 8:
        return Constant(name, "packed", packed(values_of(op), element))
    uses = [(kind_of(use.owner.operation), use.operand_number) for use in op.results[0].uses]
    role: Role = next((_OPERANDS[use] for use in uses if use in _OPERANDS), "weight")
    return Constant(name, role, np.array(values_of(op)))


def _write(constant: Constant, op: Any) -> None:
    element, shape = element_of(op), shape_of(op)
    values = unpacked(constant.values, element, shape) if constant.role == "packed" else constant.values.reshape(shape)
    if not np.array_equal(values, values_of(op), equal_nan=True):
        op.attributes["value"] = held_value(values, element.name, f"edited_{constant.name}")


def store_as_float(path: Path) -> bool:
    """Store each compressed weight as the float that it stands for; False where none is."""
    program = read_program(path)
    decoders = [op for op in operations(program) if kind_of(op) in DECODERS]
    with program._module._mlir_module.context:
        for number, op in enumerate(decoders):
            kind = op.results[0].type
            values = decoded(op).astype(np.float16 if str(kind.element_type) == "f16" else np.float32)
            with ir.InsertionPoint(op), op.location:
                made = dialect.ConstantOp(value=held_value(values, values.dtype.name, f"float_{number}")).result
            op.results[0].replace_all_uses_with(made)
            op.erase()
    if decoders:
        write_program(program, path, read_custom(path))
    return bool(decoders)
