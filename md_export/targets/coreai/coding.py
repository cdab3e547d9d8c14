"""A weight as integers times scales, or as indices into tables, and back: what the file's own decoders compute."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np

from md_export.spec.tensors import Array
from md_export.spec.weight_storage import WeightStorage
from md_export.targets.quantization.palette import palettize

Floats = np.ndarray[Any, Any]


def integers(weight: Floats, storage: WeightStorage) -> tuple[Array, Floats]:
    """Symmetric integers, from the largest magnitude of each part, and scales of the weight's own type.

    Args:
        weight: float32 or float16, ``[out, in, *kernel]``.
        storage: one scale for each of its groups.

    Returns:
        int8 of the weight's shape, within ``±levels``; scales ``[*groups]``.
    """
    wide = weight.astype(np.float32, copy=False)
    inside = tuple(range(1, 2 * weight.ndim, 2))
    parts = _parted(wide, storage.groups)
    scales = (np.abs(parts).max(axis=inside, keepdims=True) / storage.levels).astype(weight.dtype)
    scales[scales == 0] = 1
    rounded = np.clip(np.rint(parts / scales.astype(np.float32)), -storage.levels, storage.levels)
    return rounded.astype(np.int8).reshape(weight.shape), scales.reshape(storage.groups)


def indices(weight: Floats, storage: WeightStorage) -> tuple[Array, Floats]:
    """Indices, uint8 of the weight's shape, and tables ``[*groups, entries, 1]`` of its type: see :mod:`kmeans`."""
    parts = _parted(weight, storage.groups)
    found = np.empty(parts.shape, np.uint8)
    tables = np.empty((*storage.groups, storage.entries, 1), weight.dtype)
    for group in product(*map(range, storage.groups)):
        place = tuple(item for index in group for item in (index, slice(None)))
        table, chosen = palettize(parts[place], storage.entries)
        tables[group] = table[:, None]
        found[place] = chosen.reshape(parts[place].shape)
    return found.reshape(weight.shape), tables


def scaled(values: Array, scales: Floats, offsets: tuple[Array, Floats]) -> Floats:
    """Of ``blockwise_shift_scale``: ``scale · (value - offset) + offset``, in the second offset's type."""
    first, second = (_each(offset, values.shape) for offset in offsets)
    found = _each(scales, values.shape).astype(np.float32) * (values.astype(np.float32) - first) + second
    return np.asarray(found.astype(offsets[1].dtype))


def looked_up(chosen: Array, tables: Floats) -> Floats:
    """Of ``lut_to_dense`` with one value per entry."""
    groups = tables.shape[: chosen.ndim]
    numbers = _each(np.arange(int(np.prod(groups))).reshape(groups), chosen.shape)
    return np.asarray(tables.reshape(-1, tables.shape[-2])[numbers, chosen])


def _parted(values: Floats, groups: tuple[int, ...]) -> Floats:
    """``[groups[0], shape[0] / groups[0], groups[1], …]``."""
    return values.reshape(
        [part for size, count in zip(values.shape, groups, strict=True) for part in (count, size // count)]
    )


def _each(blocks: Floats, shape: tuple[int, ...]) -> Floats:
    """One value per part → one per element."""
    for axis, size in enumerate(shape):
        blocks = np.repeat(blocks, size // blocks.shape[axis], axis=axis)
    return blocks
