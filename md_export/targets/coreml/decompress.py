"""Weights out of the operands of ``constexpr_*`` operations, with their scales, tables and masks.

Arithmetic is that of the runtime's own kernels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod
from typing import Any, Final

import torch

from md_export.targets.coreml.constants import Argument, Constants, Decoder, plain
from md_export.targets.coreml.mil.dtypes import DTYPES, unpack_bits
from md_export.targets.coreml.mil.kernels import compression as kernels
from md_export.targets.stored import Grid, Palette, StoredWeight, along

_LEVELS: Final = {"int8": 127, "uint8": 255, "int4": 7, "uint4": 15}


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
    return _weight(data.dtype, dense, data, scale, zero, grid=Grid(steps, _LEVELS[data.dtype]))


def _blockwise(constants: Constants, op: Any) -> StoredWeight:
    data, scale, offset = (
        constants.argument(op, "data"),
        constants.argument(op, "scale"),
        constants.optional(op, "offset"),
    )
    dense = kernels.blockwise_shift_scale(data.values, scale.values, None if offset is None else offset.values)
    grid = Grid(scale.values.float().numpy(), _LEVELS[data.dtype])
    return _weight(data.dtype, dense, data, scale, offset, grid=grid)


def _table(constants: Constants, op: Any) -> tuple[Argument, float]:
    """A palette's table and the step of its entries, where they are integers."""
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
    """The mask and what is kept, which may be integers or indices itself."""
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
    grid = Grid(scale.values.float().numpy(), _LEVELS[data.dtype])
    # Where nothing is stored the offset must not show.
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
