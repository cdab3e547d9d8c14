"""A weight as integers times scales: symmetric, from the largest magnitude, with no zero point."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Final

import ml_dtypes
import numpy as np

from md_export.spec.weight_storage import WeightStorage

_TYPES: Final[Mapping[int, Any]] = {8: np.int8, 4: ml_dtypes.int4}


@dataclass(frozen=True)
class Integers:
    """What DequantizeLinear takes.

    Attributes:
        values: int8 or int4, of the weight's shape; ``[out, in·kernel]`` where blocks span a kernel.
        scales: of the weight's own type; a scalar, ``[out]``, or as ``values`` with blocks for elements.
        attributes: DequantizeLinear's axis and block_size, as far as it needs them.
    """

    values: np.ndarray[Any, Any]
    scales: np.ndarray[Any, Any]
    attributes: Mapping[str, int]


def integers(weight: np.ndarray[Any, Any], made: int, storage: WeightStorage) -> Integers:
    """Round a weight to integers.

    A block spans all of a kernel, but DequantizeLinear has blocks along one axis: such a weight becomes a matrix.

    Args:
        weight: float32 or float16, ``[out, in, *kernel]`` or ``[in, out]``.
        made: axis of the output channels, 0 or 1; the other is the input channels'.
        storage: of the weight in torch's layout.
    """
    if storage.groups[1] > 1:
        return _in_blocks(weight, 1 - made, storage)
    whole = storage.groups[0] == 1
    axes = tuple(axis for axis in range(weight.ndim) if whole or axis != made)
    values, scales = symmetric(weight, axes, storage.bits)
    return Integers(values, scales.reshape(() if whole else -1), {} if whole else {"axis": made})


def _in_blocks(weight: np.ndarray[Any, Any], given: int, storage: WeightStorage) -> Integers:
    matrix = weight.reshape(len(weight), -1) if prod(weight.shape[2:]) > 1 else weight
    shape = matrix.shape
    size = shape[given] // storage.groups[1]
    values, scales = symmetric(
        matrix.reshape(*shape[:given], -1, size, *shape[given + 1 :]), (given + 1,), storage.bits
    )
    return Integers(values.reshape(shape), scales.squeeze(given + 1), {"axis": given, "block_size": size})


def symmetric(
    values: np.ndarray[Any, Any], axes: tuple[int, ...], bits: int
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Integers of so many bits, and scales of the values' own type; what lies along ``axes`` shares one."""
    most = 2 ** (bits - 1) - 1
    wide = values.astype(np.float32, copy=False)
    scales = (np.abs(wide).max(axis=axes, keepdims=True) / most).astype(values.dtype)
    scales[scales == 0] = 1
    rounded = np.rint(wide / scales.astype(np.float32))
    return np.clip(rounded, -most, most).astype(_TYPES[bits]), scales
