"""Constants of a saved asset: decode them one at a time, and change them for the self-test of verification."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from md_export.errors import RuntimeFault, raised_as
from md_export.spec.scheme import QuantScheme
from md_export.spec.tensors import Array
from md_export.targets.coreai.bindings import VENDOR_ERRORS, dialect, ir, kind_of, module_of, operations, read_program
from md_export.targets.coreai.constants import (
    element_of,
    held_value,
    is_constant,
    looked_up,
    packed,
    scaled,
    shape_of,
    stored_bytes,
    unpacked,
    values_of,
)
from md_export.targets.coreai.save import read_custom, write_program
from md_export.targets.coreai.weights import (
    DECODERS,
    MULTIPLIED,
    ROLES,
    Reader,
    path_of,
    readers_of,
    storage_of,
    to_torch,
)
from md_export.targets.stored import LEVELS, Constant, Float32, Grid, Palette, StoredWeight, Use

_SCALED, _LOOKED_UP = "blockwise_shift_scale", "lut_to_dense"
Role = Literal["weight", "scale", "palette"]
_OPERANDS: Final[dict[tuple[str, int], Role]] = {
    ("blockwise_shift_scale", 1): "scale",
    ("lut_to_dense", 1): "palette",
}


def stored_weights(path: Path, scheme: QuantScheme) -> Iterator[StoredWeight]:
    """Yield every constant except the scales, offsets and tables of other constants.

    Raises:
        RuntimeFault: it is not a Core AI asset, or a weight cannot be decoded.
    """
    # Operations are views that are valid only as long as their program.
    program = read_program(path)
    found = operations(program)
    with raised_as(RuntimeFault, f"{path.name}: a weight cannot be decoded", VENDOR_ERRORS, then="; export it again"):
        decoders = [op for op in found if kind_of(op) in DECODERS]
        owned = {operand.owner for op in decoders for operand in op.operands}
        for number, op in enumerate(found):
            if op in decoders or (is_constant(op) and op not in owned):
                yield _weight(op, number, scheme)


def decoded(op: Any) -> Float32:
    """Return the values of a constant, or of a decoder's result."""
    held = [values_of(part) for part in parts_of(op)]
    if is_constant(op):
        return np.asarray(held[0], np.float32)
    made = scaled(held[0], held[1], (held[2], held[3])) if len(held) > 3 else looked_up(held[0], held[1])
    return made.astype(np.float32)


def parts_of(op: Any) -> list[Any]:
    """Return the constants of a weight, the one with the weight's shape first."""
    return [op] if is_constant(op) else [operand.owner for operand in op.operands]


def _weight(op: Any, number: int, scheme: QuantScheme) -> StoredWeight:
    readers, held, kind = readers_of(op), parts_of(op), kind_of(op)
    parts = Counter[str]()
    for part in held:
        parts[element_of(part).name] += stored_bytes(part)
    dtype: str = element_of(held[0]).name
    values: Any = to_torch(decoded(op), readers)
    is_float = not is_constant(op) or dtype.startswith("float")
    return StoredWeight(
        name=f"{path_of(readers)}%{number}",
        dtype=dtype,
        parts=parts,
        values=values,
        # Sizes and axes can look like a bias.
        uses=tuple(dict.fromkeys(map(_use, readers))) if is_float else (),
        half="float16" in parts,
        promised=_is_promised(values.shape, readers, scheme),
        grid=Grid(_part(to_torch(values_of(held[1]), readers)), LEVELS[dtype]) if kind == _SCALED else None,
        palette=Palette(_part(to_torch(values_of(held[1])[..., 0], readers, 3))) if kind == _LOOKED_UP else None,
    )


def _part(values: Array) -> Float32:
    return np.asarray(values, np.float32)


def _use(reader: Reader) -> Use:
    place = module_of(reader.op)
    return Use(() if place is None else (place,), ROLES.get(reader.place, ""))


def _is_promised(shape: tuple[int, ...], readers: list[Reader], scheme: QuantScheme) -> bool:
    """Whether the scheme must compress a weight: it is multiplied or looked up, and larger than its palette."""
    multiplied = [reader for reader in readers if reader.place in MULTIPLIED]
    if not multiplied or len(shape) < 2:
        return False
    own = scheme.for_module(path_of(multiplied))
    return own.weights.startswith("float") or storage_of(shape, own) is not None


@contextmanager
def edit(path: Path) -> Iterator[list[Constant]]:
    """Yield the constants in the order in which operations read them; changes in place are saved at the end."""
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
    """Store each compressed weight as its float values; return False without any."""
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
