"""The shape of data on the arrows between stages: named tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import save_file

from md_export.errors import OutputError

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


def save_tensors(arrays: Arrays, path: Path) -> None:
    """Write named arrays as safetensors.

    Raises:
        OutputError: the file could not be written whole.
    """
    try:
        save_file({name: np.asarray(value, order="C") for name, value in arrays.items()}, path)
    except (SafetensorError, OSError) as error:
        raise OutputError(f"{path.name} could not be written: {error}; nothing was kept. Is the disk full?") from error


def joined(arrays: Arrays) -> Array:
    """The only array as it is; several as one row of numbers, in the order of their names."""
    if len(arrays) == 1:
        (value,) = arrays.values()
        return value
    return np.concatenate([arrays[name].ravel() for name in sorted(arrays)])


def select(arrays: Arrays, specs: tuple[TensorSpec, ...]) -> dict[str, Array]:
    """The arrays that ``specs`` name, in their order."""
    return {spec.name: arrays[spec.name] for spec in specs}
