"""Compressed weights (``constexpr_*``) and affine quantization of activations.

Arithmetic follows coremltools' own decompression: in float32, then rounded to the declared type.
"""

from __future__ import annotations

import math

import torch

from md_export.targets.coreml.mil.bind import Ints, Stored, Tensor
from md_export.targets.coreml.mil.dtypes import DTYPES, unpack_bits

_INTEGER_RANGE = {"int8": (-128, 127), "uint8": (0, 255)}


def _along(param: Tensor, rank: int, axis: int | None) -> Tensor:
    """A vector laid along ``axis`` of a rank-``rank`` tensor; a scalar broadcasts as it is."""
    if param.dim() == 0 or param.numel() == 1:
        return param.reshape(())
    if axis is None:
        raise ValueError("a vector of scales needs an axis")
    return param.reshape([-1 if i == axis % rank else 1 for i in range(rank)])


def affine_dequantize(quantized_data: Stored, zero_point: Stored, scale: Tensor, axis: int) -> Tensor:
    """scale · (data − zero_point), per tensor or along ``axis``."""
    rank = quantized_data.dim()
    return (quantized_data.float() - _along(zero_point, rank, axis).float()) * _along(scale, rank, axis)


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
    count = math.prod(shape)
    positions = indices if name == "uint8" else _bits(indices, name, count)
    return lut[positions.long()].reshape(shape)


def sparse_to_dense_ios16(nonzero_data: Stored, mask: Stored, shape: Ints) -> Tensor:
    """iOS16: a packed bit mask [bytes] and the values where it is set."""
    return sparse_to_dense(nonzero_data, _bits(mask, "uint1", math.prod(shape)).reshape(shape))


def _blocks(param: Tensor, shape: torch.Size) -> Tensor:
    """``param`` repeated along every axis until it has ``shape``; axes of size 1 are left to broadcasting."""
    for axis, (own, size) in enumerate(zip(param.shape, shape, strict=True)):
        if own not in (1, size):
            param = param.repeat_interleave(size // own, axis)
    return param


def blockwise_shift_scale(data: Stored, scale: Tensor, offset: Stored | None = None) -> Tensor:
    """scale · (data − offset); every scale serves a block of data.shape / scale.shape elements."""
    values = data.float()
    if offset is not None:
        values = values - _blocks(offset.float(), data.shape)
    return values * _blocks(scale, data.shape)


def lut_to_dense(indices: Stored, lut: Stored, vector_axis: int | None = None) -> Tensor:
    """iOS18: indices [*K] into tables [*groups, 2^bits, vector]; a vector fills ``vector_axis``."""
    rank = indices.dim()
    vector = lut.shape[-1]
    tables = lut.reshape(-1, *lut.shape[-2:])
    groups = torch.arange(tables.shape[0]).reshape(lut.shape[:rank])
    dense = tables[_blocks(groups, indices.shape), indices.long()]
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
    data_mask: Stored, nonzero_data: Stored, scale: Tensor, offset: Stored | None = None
) -> tuple[Tensor, Tensor]:
    """Quantized values of a sparse tensor: the mask and the scaled values where it is set."""
    dense = blockwise_shift_scale(sparse_to_dense(nonzero_data, data_mask), scale, offset)
    return data_mask, dense[data_mask.bool()]


def quantize(
    input: Tensor,
    scale: Tensor,
    output_dtype: str,
    zero_point: Stored | None = None,
    axis: int | None = None,
) -> Tensor:
    """clip(round(input / scale) + zero_point), ties to even; NaN has no integer and is refused."""
    if torch.isnan(input).any():
        raise ValueError("NaN cannot be quantized")
    values = torch.round(input / _along(scale, input.dim(), axis))
    if zero_point is not None:
        values = values + _along(zero_point, input.dim(), axis).float()
    low, high = _INTEGER_RANGE[output_dtype]
    return values.clamp(low, high).to(DTYPES[output_dtype].carrier)


def dequantize(
    input: Stored,
    scale: Tensor,
    zero_point: Stored | None = None,
    axis: int | None = None,
) -> Tensor:
    """scale · (input − zero_point)."""
    values = input.float()
    if zero_point is not None:
        values = values - _along(zero_point, input.dim(), axis).float()
    return values * _along(scale, input.dim(), axis)
