"""Compressed weights (``constexpr_*``) and affine quantization of activations.

Arithmetic follows coremltools' own decompression: in float32, then rounded to the type of the scale, which is the
declared one. Weights are decompressed some rows at a time, so that float32 and index copies stay small.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from md_export.mil.bind import Ints, Stored, Tensor
from md_export.mil.dtypes import DTYPES, unpack_bits

# Elements decompressed at a time.
_CHUNK = 1 << 18
_INTEGER_RANGE = {"int8": (-128, 127), "uint8": (0, 255)}


def _along(param: Tensor, rank: int, axis: int | None) -> Tensor:
    """A vector laid along ``axis`` of a rank-``rank`` tensor; a scalar broadcasts unchanged."""
    if param.dim() == 0 or param.numel() == 1:
        return param.reshape(())
    if axis is None:
        raise ValueError("a vector of scales needs an axis")
    return param.reshape([-1 if i == axis % rank else 1 for i in range(rank)])


def _by_rows(shape: Ints, dtype: torch.dtype, compute: Callable[[range], Tensor]) -> Tensor:
    """A tensor of ``shape``, filled by ``compute`` for some rows (positions of axis 0) at a time."""
    out = torch.empty(shape, dtype=dtype)
    step = max(1, _CHUNK // max(1, math.prod(shape[1:])))
    for start in range(0, shape[0], step):
        rows = range(start, min(start + step, shape[0]))
        out[rows.start : rows.stop] = compute(rows)
    return out


def _rows(param: Tensor, rows: range, size: int) -> Tensor:
    """The part of ``param`` that serves these of ``size`` rows."""
    if param.dim() == 0 or param.shape[0] == 1:
        return param
    return param[torch.arange(rows.start, rows.stop) // (size // param.shape[0])]


def affine_dequantize(quantized_data: Stored, zero_point: Stored, scale: Stored, axis: int) -> Tensor:
    """scale · (data − zero_point), per tensor or along ``axis``."""
    size, rank = quantized_data.shape[0], quantized_data.dim()
    offset, factor = _along(zero_point, rank, axis), _along(scale.float(), rank, axis)

    def compute(rows: range) -> Tensor:
        values = quantized_data[rows.start : rows.stop].float()
        return values.sub_(_rows(offset, rows, size)).mul_(_rows(factor, rows, size))

    return _by_rows(tuple(quantized_data.shape), scale.dtype, compute)


def constexpr_cast(source_val: Stored, output_dtype: str) -> Tensor:
    """The constant in another floating-point type."""
    target = DTYPES[output_dtype].carrier
    if target is None:
        raise ValueError(f"cast to {output_dtype}")
    return source_val.to(target)


def _bits(packed: Tensor, name: str, count: int) -> Tensor:
    return torch.from_numpy(unpack_bits(packed.numpy(), DTYPES[name], count))


def lut_to_dense_ios16(indices: Stored, lut: Stored, shape: Ints) -> Tensor:
    """iOS16: packed indices [bytes] into one table [2^bits]."""
    name = f"uint{int(math.log2(lut.numel()))}"
    positions = indices if name == "uint8" else _bits(indices, name, math.prod(shape))
    flat = positions.reshape(-1)
    return _by_rows((flat.numel(),), lut.dtype, lambda rows: lut[flat[rows.start : rows.stop].long()]).reshape(shape)


def sparse_to_dense_ios16(nonzero_data: Stored, mask: Stored, shape: Ints) -> Tensor:
    """iOS16: a packed bit mask [bytes] and the values where it is set."""
    return sparse_to_dense(nonzero_data, _bits(mask, "uint1", math.prod(shape)).reshape(shape))


def _blocks(param: Tensor, shape: torch.Size) -> Tensor:
    """``param`` repeated along every axis until it has ``shape``; axes of size 1 are left to broadcasting."""
    for axis, (own, size) in enumerate(zip(param.shape, shape, strict=True)):
        if own not in (1, size):
            param = param.repeat_interleave(size // own, axis)
    return param


def blockwise_shift_scale(data: Stored, scale: Stored, offset: Stored | None = None) -> Tensor:
    """scale · (data − offset); every scale serves a block of data.shape / scale.shape elements."""
    size = data.shape[0]

    def compute(rows: range) -> Tensor:
        values = data[rows.start : rows.stop].to(torch.float32, copy=True)
        if offset is not None:
            values.sub_(_blocks(_rows(offset, rows, size), values.shape))
        return values.mul_(_blocks(_rows(scale.float(), rows, size), values.shape))

    return _by_rows(tuple(data.shape), scale.dtype, compute)


def lut_to_dense(indices: Stored, lut: Stored, vector_axis: int | None = None) -> Tensor:
    """iOS18: indices [*K] into tables [*groups, 2^bits, vector]; a vector fills ``vector_axis``."""
    rank, vector = indices.dim(), lut.shape[-1]
    tables = lut.reshape(-1, *lut.shape[-2:])
    groups = torch.arange(tables.shape[0]).reshape(lut.shape[:rank])

    def compute(rows: range) -> Tensor:
        chosen = indices[rows.start : rows.stop].long()
        return tables[_blocks(_rows(groups, rows, indices.shape[0]), chosen.shape), chosen]

    dense = _by_rows((*indices.shape, vector), lut.dtype, compute)
    if vector == 1:
        return dense.squeeze(-1)
    if vector_axis is None:
        raise ValueError("a table of vectors needs a vector_axis")
    axis = vector_axis % rank
    return dense.movedim(-1, axis + 1).flatten(axis, axis + 1)


def sparse_to_dense(nonzero_data: Stored, mask: Stored) -> Tensor:
    """iOS18: the values in row-major order where the mask is set, zeros elsewhere."""
    dense = torch.zeros(mask.shape, dtype=nonzero_data.dtype)
    chosen = mask.bool()
    if int(chosen.sum()) != nonzero_data.numel():
        raise ValueError(f"the mask sets {int(chosen.sum())} elements, there are {nonzero_data.numel()} values")
    dense[chosen] = nonzero_data
    return dense


def lut_to_sparse(
    indices_mask: Stored, indices_nonzero_data: Stored, lut: Stored, vector_axis: int | None = None
) -> tuple[Tensor, Tensor]:
    """Palettized values of a sparse tensor: the mask (widened by the vector) and the values where it is set."""
    dense = lut_to_dense(sparse_to_dense(indices_nonzero_data, indices_mask), lut, vector_axis)
    mask = indices_mask
    if lut.shape[-1] > 1 and vector_axis is not None:
        mask = mask.repeat_interleave(lut.shape[-1], vector_axis)
    return mask, dense[mask.bool()]


def sparse_blockwise_shift_scale(
    data_mask: Stored, nonzero_data: Stored, scale: Stored, offset: Stored | None = None
) -> tuple[Tensor, Tensor]:
    """Quantized values of a sparse tensor: the mask and the scaled values where it is set."""
    dense = blockwise_shift_scale(sparse_to_dense(nonzero_data, data_mask), scale, offset)
    return data_mask, dense[data_mask.bool()]


def quantize(
    input: Tensor, scale: Tensor, output_dtype: str, zero_point: Stored | None = None, axis: int | None = None
) -> Tensor:
    """clip(round(input / scale) + zero_point), ties to even; NaN has no integer and is refused."""
    if torch.isnan(input).any():
        raise ValueError("NaN cannot be quantized")
    values = torch.round(input / _along(scale, input.dim(), axis))
    if zero_point is not None:
        values = values + _along(zero_point, input.dim(), axis).float()
    low, high = _INTEGER_RANGE[output_dtype]
    return values.clamp(low, high).to(DTYPES[output_dtype].carrier)


def dequantize(input: Stored, scale: Tensor, zero_point: Stored | None = None, axis: int | None = None) -> Tensor:
    """scale · (input − zero_point)."""
    values = input.float()
    if zero_point is not None:
        values = values - _along(zero_point, input.dim(), axis).float()
    return values * _along(scale, input.dim(), axis)
