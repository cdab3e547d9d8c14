"""A weight of a saved artifact: decoded values, and the parameters of its compression.

Values are in torch's layout (``[out, in, kernel…]``) for every format, so that a transposed weight is a wrong one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Role = Literal["weight", "bias", ""]
# Largest magnitude of an integer on a symmetric grid, or largest integer of an unsigned one.
LEVELS: Final[Mapping[str, int]] = {
    **{f"int{bits}": 2 ** (bits - 1) - 1 for bits in (4, 8, 16, 32)},
    **{f"uint{bits}": 2**bits - 1 for bits in (4, 8, 16)},
}


@dataclass(frozen=True)
class Use:
    """One place that reads a stored weight.

    Attributes:
        modules: paths of the torch modules that the operation computes, several if the converter fused them; empty
            if not recorded.
        role: role of the weight in the operation; empty if unknown.
    """

    modules: tuple[str, ...]
    role: Role = ""


@dataclass(frozen=True)
class Grid:
    """Integers times a scale.

    Attributes:
        steps: scales, with as many axes as the weight, each of length 1 or a divisor of the weight's.
        levels: largest magnitude of an integer; 127 for int8, 7 for int4.
    """

    steps: Float32
    levels: int


@dataclass(frozen=True)
class Palette:
    """Indices into tables.

    Attributes:
        tables: ``[*groups, entries]``; as many group axes as the weight, each of length 1 or a divisor of the weight's.
        step: scale of the entries if they are integers, else 0.
    """

    tables: Float32
    step: float = 0.0


@dataclass(frozen=True)
class StoredWeight:
    """One constant of an artifact.

    Attributes:
        name: name in the file.
        dtype: type of its values in the file: ``float16``, ``int8``, ``uint4`` for a palette of 16 entries, ….
        parts: bytes by type, including its scales, tables and masks.
        values: decoded values.
        uses: places that read it.
        half: whether its values or scales were rounded to float16.
        promised: whether the target must store it in the scheme, unless ``keep_float`` matches the module.
        grid, palette: parameters of stored integers, or of stored indices.
        kept: mask of the elements that a sparse weight stores; the others are zero.
    """

    name: str
    dtype: str
    parts: Mapping[str, int]
    values: Float32
    uses: tuple[Use, ...] = ()
    half: bool = False
    promised: bool = False
    grid: Grid | None = None
    palette: Palette | None = None
    kept: NDArray[np.bool_] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all its parts."""
        return sum(self.parts.values())


def squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape without axes of length 1, which is equal for ``[out, in]`` and ``[out, in, 1, 1]``."""
    return tuple(size for size in shape if size != 1)


def along(vector: Any, rank: int, axis: int) -> Float32:
    """Reshape a scalar or vector to ``rank`` axes, with its values along ``axis``."""
    flat = np.asarray(vector, np.float32).reshape(-1)
    return flat.reshape([-1 if position == axis % max(rank, 1) else 1 for position in range(rank)])


@dataclass(frozen=True)
class Constant:
    """One stored array of an artifact that is open for editing.

    Attributes:
        name: unique name in the artifact.
        role: ``packed`` for several values per byte, ``scale`` of quantized weights, ``palette`` for the table of
            indices, ``weight`` for all other values, which have a type of numpy.
        values: stored values, to be changed in place, in the stored shape or flat. Packed values are bytes.
    """

    name: str
    role: Literal["weight", "packed", "scale", "palette"]
    values: NDArray[Any]

    @property
    def is_float(self) -> bool:
        """Whether it can store NaN and Inf."""
        return bool(np.issubdtype(self.values.dtype, np.floating))
