"""Compressed weights against coremltools' own decompression."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from md_export.mil.kernels import compression

RNG = np.random.default_rng(3)


def _ios16(name: str) -> Any:
    from coremltools.converters.mil.mil.ops.defs.iOS16 import constexpr_ops

    return getattr(constexpr_ops, name).decompress


def _ios18(name: str) -> Any:
    from coremltools.converters.mil.mil.ops.defs.iOS18 import compression as defs

    return getattr(defs, name).decompress


def _same(found: torch.Tensor, expected: np.ndarray[Any, Any]) -> None:
    assert tuple(found.shape) == expected.shape
    assert np.array_equal(found.numpy().astype(expected.dtype), expected)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_affine_dequantize(axis: int) -> None:
    data = RNG.integers(-128, 128, (6, 4, 3), dtype=np.int8)
    zero = RNG.integers(-5, 5, data.shape[axis], dtype=np.int8)
    scale = RNG.random((data.shape[axis],)).astype(np.float16)
    found = compression.affine_dequantize(torch.from_numpy(data), torch.from_numpy(zero), torch.from_numpy(scale), axis)
    _same(found, _ios16("constexpr_affine_dequantize")(data, zero, scale, axis))


@pytest.mark.parametrize("bits", [1, 2, 4, 6, 8])
def test_lut_to_dense_of_ios16(bits: int) -> None:
    shape = (5, 7)
    lut = RNG.standard_normal(1 << bits).astype(np.float16)
    packed = RNG.integers(0, 256, -(-35 * bits // 8), dtype=np.uint8)
    found = compression.lut_to_dense_ios16(torch.from_numpy(packed), torch.from_numpy(lut), shape)
    _same(found, _ios16("constexpr_lut_to_dense")(lut, packed, shape))


def test_sparse_to_dense_of_ios16() -> None:
    chosen = RNG.random(35) < 0.4
    packed = np.packbits(chosen, bitorder="little")
    values = RNG.standard_normal(int(chosen.sum())).astype(np.float16)
    found = compression.sparse_to_dense_ios16(torch.from_numpy(values), torch.from_numpy(packed), (5, 7))
    expected = np.zeros(35, np.float16)
    expected[chosen] = values
    _same(found, expected.reshape(5, 7))


@pytest.mark.parametrize("scales", [(1, 1, 1), (6, 1, 1), (2, 4, 1), (6, 2, 3)])
@pytest.mark.parametrize("with_offset", [True, False])
def test_blockwise_shift_scale(scales: tuple[int, ...], with_offset: bool) -> None:
    data = RNG.integers(-8, 8, (6, 4, 3), dtype=np.int8)
    scale = RNG.random(scales).astype(np.float32)
    offset = RNG.integers(-8, 8, scales, dtype=np.int8) if with_offset else None
    found = compression.blockwise_shift_scale(
        torch.from_numpy(data), torch.from_numpy(scale), None if offset is None else torch.from_numpy(offset)
    )
    _same(found, _ios18("constexpr_blockwise_shift_scale")(data, scale, offset))


@pytest.mark.parametrize("groups", [(1, 1, 1), (3, 1, 1), (1, 2, 1), (3, 2, 4)])
@pytest.mark.parametrize(("vector", "axis"), [(1, None), (3, 0), (2, 1), (4, 2)])
def test_lut_to_dense(groups: tuple[int, ...], vector: int, axis: int | None) -> None:
    indices = RNG.integers(0, 16, (6, 4, 4), dtype=np.uint8)
    lut = RNG.standard_normal((*groups, 16, vector)).astype(np.float16)
    found = compression.lut_to_dense(torch.from_numpy(indices), torch.from_numpy(lut), axis)
    _same(found, _ios18("constexpr_lut_to_dense")(indices, lut, axis))


@pytest.mark.parametrize(("vector", "axis"), [(1, None), (2, 0), (3, 1)])
def test_lut_to_sparse(vector: int, axis: int | None) -> None:
    mask = (RNG.random((4, 6)) < 0.5).astype(np.uint8)
    indices = RNG.integers(0, 4, int(mask.sum()), dtype=np.uint8)
    lut = RNG.standard_normal((1, 1, 4, vector)).astype(np.float16)
    given = [torch.from_numpy(a) for a in (mask, indices, lut)]
    found = compression.lut_to_sparse(given[0], given[1], given[2], axis)
    for one, other in zip(found, _ios18("constexpr_lut_to_sparse")(mask, indices, lut, axis), strict=True):
        _same(one, other)


def test_sparse_blockwise_shift_scale() -> None:
    mask = (RNG.random((4, 6)) < 0.5).astype(np.uint8)
    data = RNG.integers(-8, 8, int(mask.sum()), dtype=np.int8)
    scale = RNG.random((2, 1)).astype(np.float32)
    offset = RNG.integers(-8, 8, (2, 1), dtype=np.int8)
    given = [torch.from_numpy(a) for a in (mask, data, scale, offset)]
    found = compression.sparse_blockwise_shift_scale(*given)
    expected = _ios18("constexpr_sparse_blockwise_shift_scale")(mask, data, scale, offset)
    for one, other in zip(found, expected, strict=True):
        _same(one, other)


def test_a_mask_that_does_not_fit_its_values_is_refused() -> None:
    with pytest.raises(ValueError, match="sets 3 elements, there are 2"):
        compression.sparse_to_dense(torch.ones(2), torch.tensor([1, 1, 0, 1], dtype=torch.uint8))


def test_nan_cannot_be_quantized() -> None:
    with pytest.raises(ValueError, match="NaN"):
        compression.quantize(torch.tensor([float("nan")]), torch.tensor(1.0), "int8")
    assert compression.quantize(torch.tensor([2.5, -200.0]), torch.tensor(1.0), "int8").tolist() == [2, -128]
