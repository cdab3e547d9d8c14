"""The shape of data on the arrows between stages: named tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]
Arrays = Mapping[str, Array]


@dataclass(frozen=True)
class TensorSpec:
    """Name, static shape and numpy dtype name (``float32`` or ``int32``) of one input or output."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    def zeros(self) -> Array:
        """An array of this shape and dtype, for tracing."""
        return np.zeros(self.shape, dtype=self.dtype)


def select(arrays: Arrays, specs: tuple[TensorSpec, ...]) -> dict[str, Array]:
    """The arrays that ``specs`` name, in their order."""
    return {spec.name: arrays[spec.name] for spec in specs}
