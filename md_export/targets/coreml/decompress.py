"""Constants of a program by name, decompressed from their operands by the kernels of our runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import ceil, prod
from typing import Any, Final

import numpy as np
import torch

from md_export.mil.dtypes import DTYPES, TensorType, parse_type, unpack_bits
from md_export.mil.kernels import compression as kernels
from md_export.mil.values import BlobFile, decode
from md_export.targets.stored import LEVELS, Grid, Palette, StoredWeight, along

_CONST: Final = "const"
_CONSTEXPR: Final = "constexpr_"
_NAMES: Final = {"fp16": "float16", "fp32": "float32", "fp64": "float64"}


@dataclass(frozen=True)
class Argument:
    """A constant operand: values, type name in the file, stored bytes, and whether it is float16."""

    values: torch.Tensor
    dtype: str
    nbytes: int
    half: bool = False


def plain(name: str, argument: Argument) -> StoredWeight:
    """Return an uncompressed constant as a stored weight."""
    values = argument.values.to(torch.float32).numpy()
    return StoredWeight(name, argument.dtype, {argument.dtype: argument.nbytes}, values, half=argument.half)


class Constants:
    """The constants of a program's operations.

    Attributes:
        names: names of constants and decompressed weights that operations other than ``constexpr_*`` may read.
    """

    def __init__(self, operations: Any, weights: Callable[[str], BlobFile], decoders: Mapping[str, Decoder]) -> None:
        self._weights, self._decoders = weights, decoders
        self._makers = {
            output.name: op
            for op in operations
            if op.type == _CONST or op.type.startswith(_CONSTEXPR)
            for output in op.outputs
        }
        packed = {argument.name for op in self._makers.values() for argument in _bound(op)}
        # A sparse weight has two results, mask and values; the values represent both, even if the mask is read.
        packed |= {output.name for op in self._makers.values() for output in op.outputs[:-1]}
        self.names = tuple(name for name in self._makers if name not in packed)

    def decode(self, name: str) -> StoredWeight:
        """Return a constant with the values that the program computes with; a string has no ``parts``."""
        op = self._makers[name]
        if op.type == _CONST:
            argument = self._value(op.attributes["val"])
            return plain(name, argument) if argument else StoredWeight(name, "string", {}, np.zeros(0, np.float32))
        return replace(self._decoders[op.type](self, op), name=name)

    def argument(self, op: Any, role: str) -> Argument:
        """Return a constant operand of a ``constexpr_*`` operation.

        Raises:
            KeyError: the operation has no array with this role.
        """
        value = self._proto(op, role)
        found = self._value(value) if not isinstance(value, str) else None
        if isinstance(value, str):
            made = self.decode(value)
            found = Argument(torch.from_numpy(np.array(made.values)), made.dtype, made.nbytes, made.half)
        if found is None:
            raise KeyError(f"{op.outputs[0].name}: {role} is not an array")
        return found

    def optional(self, op: Any, role: str) -> Argument | None:
        """Return a constant operand as :meth:`argument` does; None if the operation lacks it."""
        return self.argument(op, role) if role in op.inputs or role in op.attributes else None

    def maker(self, op: Any, role: str) -> Any | None:
        """Return the ``constexpr_*`` operation that computes an operand."""
        value = self._proto(op, role)
        return self._makers[value] if isinstance(value, str) else None

    def _proto(self, op: Any, role: str) -> Any:
        """Return the operand: its value, or the name of another ``constexpr_*`` operation's result."""
        if role in op.attributes:
            return op.attributes[role]
        (argument,) = op.inputs[role].arguments
        if argument.WhichOneof("binding") != "name":
            return argument.value
        maker = self._makers[argument.name]
        return maker.attributes["val"] if maker.type == _CONST else argument.name

    def _value(self, proto: Any) -> Argument | None:
        declared, values = parse_type(proto.type), decode(proto, self._weights)
        if isinstance(values, str) or not isinstance(declared, TensorType):
            return None
        name = _NAMES.get(declared.dtype.name, declared.dtype.name)
        return Argument(values, name, ceil(values.numel() * declared.dtype.bits / 8), name == "float16")


# Decodes a ``constexpr_*`` operation with its operands to a weight.
Decoder = Callable[[Constants, Any], StoredWeight]


def _bound(op: Any) -> Iterator[Any]:
    if op.type.startswith(_CONSTEXPR):
        for value in op.inputs.values():
            yield from (argument for argument in value.arguments if argument.name)


def _parts(*arguments: Argument | None) -> dict[str, int]:
    found: dict[str, int] = {}
    for argument in arguments:
        if argument is not None:
            found[argument.dtype] = found.get(argument.dtype, 0) + argument.nbytes
    return found


def _weight(dtype: str, dense: torch.Tensor, *arguments: Argument | None, **known: Any) -> StoredWeight:
    half = any(argument is not None and argument.half for argument in arguments)
    return StoredWeight("", dtype, _parts(*arguments), dense.to(torch.float32).numpy(), half=half, **known)


def _affine(constants: Constants, op: Any) -> StoredWeight:
    data, scale, zero = (constants.argument(op, role) for role in ("quantized_data", "scale", "zero_point"))
    axis = int(constants.argument(op, "axis").values)
    dense = kernels.affine_dequantize(data.values, zero.values, scale.values, axis)
    steps = along(scale.values.float().numpy(), data.values.dim(), axis)
    return _weight(data.dtype, dense, data, scale, zero, grid=Grid(steps, LEVELS[data.dtype]))


def _blockwise(constants: Constants, op: Any) -> StoredWeight:
    data, scale, offset = (
        constants.argument(op, "data"),
        constants.argument(op, "scale"),
        constants.optional(op, "offset"),
    )
    dense = kernels.blockwise_shift_scale(data.values, scale.values, None if offset is None else offset.values)
    grid = Grid(scale.values.float().numpy(), LEVELS[data.dtype])
    return _weight(data.dtype, dense, data, scale, offset, grid=grid)


def _table(constants: Constants, op: Any) -> tuple[Argument, float]:
    """Return a palette's table, and the scale of its entries if they are integers."""
    table, maker = constants.argument(op, "lut"), constants.maker(op, "lut")
    if maker is None:
        return table, 0.0
    made = constants.decode(maker.outputs[0].name)
    return table, 0.0 if made.grid is None else float(made.grid.steps.max())


def _palette(constants: Constants, op: Any) -> StoredWeight:
    indices, (table, step) = constants.argument(op, "indices"), _table(constants, op)
    shape = constants.optional(op, "shape")
    if shape is None:
        dense, tables = kernels.lut_to_dense(indices.values, table.values), table.values[..., 0]
        named = indices
    else:
        sizes = tuple(shape.values.tolist())
        dense = kernels.lut_to_dense_ios16(indices.values, table.values, sizes)
        tables = table.values.reshape((1,) * len(sizes) + (-1,))
        named = replace(indices, dtype=f"uint{8 * indices.nbytes // prod(sizes)}")
    palette = Palette(tables.float().numpy(), step)
    return _weight(named.dtype, dense, named, table, palette=palette)


def _sparse(constants: Constants, op: Any) -> StoredWeight:
    """Decode a mask and the kept values; these may be integers or indices."""
    maker = constants.maker(op, "nonzero_data")
    if maker is not None:
        return constants.decode(maker.outputs[-1].name)
    data, mask, shape = (
        constants.argument(op, "nonzero_data"),
        constants.argument(op, "mask"),
        constants.optional(op, "shape"),
    )
    if shape is not None:
        sizes = tuple(shape.values.tolist())
        bits = unpack_bits(mask.values.numpy(), DTYPES["uint1"], prod(sizes)).reshape(sizes)
        mask = Argument(torch.from_numpy(bits), "uint1", mask.nbytes)
    dense = kernels.sparse_to_dense(data.values, mask.values)
    return _weight(data.dtype, dense, data, mask, kept=mask.values.numpy().astype(bool))


def _sparse_blockwise(constants: Constants, op: Any) -> StoredWeight:
    mask, data, scale = (constants.argument(op, role) for role in ("data_mask", "nonzero_data", "scale"))
    offset = constants.optional(op, "offset")
    kept = kernels.sparse_to_dense(data.values, mask.values)
    dense = kernels.blockwise_shift_scale(kept, scale.values, None if offset is None else offset.values)
    chosen = mask.values.numpy().astype(bool)
    grid = Grid(scale.values.float().numpy(), LEVELS[data.dtype])
    # Positions without a stored value are zero; the offset must not change them.
    return _weight(data.dtype, dense * mask.values, data, mask, scale, offset, grid=grid, kept=chosen)


def _sparse_palette(constants: Constants, op: Any) -> StoredWeight:
    mask, indices = (constants.argument(op, role) for role in ("indices_mask", "indices_nonzero_data"))
    table, step = _table(constants, op)
    chosen = mask.values.numpy().astype(bool)
    dense = kernels.lut_to_dense(kernels.sparse_to_dense(indices.values, mask.values), table.values) * mask.values
    palette = Palette(table.values[..., 0].float().numpy(), step)
    return _weight(indices.dtype, dense, indices, mask, table, palette=palette, kept=chosen)


def _cast(constants: Constants, op: Any) -> StoredWeight:
    return plain("", constants.argument(op, "source_val"))


DECODERS: Final[Mapping[str, Decoder]] = {
    "constexpr_affine_dequantize": _affine,
    "constexpr_blockwise_shift_scale": _blockwise,
    "constexpr_lut_to_dense": _palette,
    "constexpr_sparse_to_dense": _sparse,
    "constexpr_sparse_blockwise_shift_scale": _sparse_blockwise,
    "constexpr_lut_to_sparse": _sparse_palette,
    "constexpr_cast": _cast,
}
