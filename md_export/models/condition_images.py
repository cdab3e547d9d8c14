"""Condition pictures for adapters: from a picture's edges, or from a file."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from md_export.spec.tensors import Array

_Floats = NDArray[np.float64]
_SMOOTH: Final = (1.0, 2.0, 1.0)
_DIFFERENCE: Final = (-1.0, 0.0, 1.0)
# Share of a step from 0 to 1 from which on it is an edge.
_STEEP: Final = 0.22


def edges(picture: Array, channels: int = 1) -> Array:
    """The edges of a ``[H, W, 3]`` picture in [0, 1]: ``[1, channels, H, W]`` float32, 1 on an edge and 0 elsewhere.

    Sobel's gradient of the channel in which it is largest, against a threshold. Sums in float64, so that the same
    picture has the same edges everywhere.
    """
    padded = np.pad(picture.astype(np.float64), ((1, 1), (1, 1), (0, 0)), mode="edge")
    along_x, along_y = _gradient(padded, axis=1), _gradient(padded, axis=0)
    steepness = np.sqrt(along_x**2 + along_y**2).max(axis=2) / sum(_SMOOTH)
    return np.repeat((steepness > _STEEP).astype(np.float32)[None, None], channels, axis=1)


def _gradient(padded: _Floats, axis: int) -> _Floats:
    """Sobel's along one axis: the difference along it, smoothed along the other."""
    return _three(_three(padded, _DIFFERENCE, axis), _SMOOTH, 1 - axis)


def _three(values: _Floats, factors: tuple[float, ...], axis: int) -> _Floats:
    size = values.shape[axis] - 2
    moved = np.moveaxis(values, axis, 0)
    summed = sum(factor * moved[start : start + size] for start, factor in enumerate(factors))
    return np.moveaxis(np.asarray(summed), 0, axis)
