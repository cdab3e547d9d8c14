"""A weight as a saved artifact holds it: decoded, with what its compression says of its rounding.

Values are in torch's own layout (``[out, in, kernel…]``), whatever the format's, so that a transposed weight is a wrong
one.
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
        modules: paths of the torch modules that the operation computes, several where the converter fused them; none
            where the artifact does not tell.
        role: what the operation does with it; empty where both may be.
    """

    modules: tuple[str, ...]
    role: Role = ""


@dataclass(frozen=True)
class Grid:
    """Integers times a step.

    Attributes:
        steps: as many axes as the weight, each of 1 or of a divisor of the weight's.
        levels: largest magnitude of an integer; 127 for int8, 7 for int4.
    """

    steps: Float32
    levels: int


@dataclass(frozen=True)
class Palette:
    """Indices into tables.

    Attributes:
        tables: ``[*groups, entries]``; as many group axes as the weight has, each 1 or a divisor of the weight's.
        step: of the entries, where they are integers themselves; else 0.
    """

    tables: Float32
    step: float = 0.0


@dataclass(frozen=True)
class StoredWeight:
    """One constant of an artifact.

    Attributes:
        name: in the file.
        dtype: type of its values in the file: ``float16``, ``int8``, ``uint4`` for a palette of 16 entries, ….
        parts: bytes by type, with the scales, tables and masks that belong to it.
        values: decoded.
        uses: places that read it.
        half: its values or scales went through float16.
        promised: the target stores weights of such uses as the scheme says, unless ``keep_float`` names the module.
        grid, palette: of integers, of indices.
        kept: which elements a sparse weight stores; the others are zero.
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
        """All of its parts."""
        return sum(self.parts.values())


def squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without axes of length 1: what ``[out, in]`` and ``[out, in, 1, 1]`` have in common."""
    return tuple(size for size in shape if size != 1)


def along(vector: Any, rank: int, axis: int) -> Float32:
    """A scalar or vector laid along ``axis`` of ``rank`` axes."""
    flat = np.asarray(vector, np.float32).reshape(-1)
    return flat.reshape([-1 if position == axis % max(rank, 1) else 1 for position in range(rank)])


@dataclass(frozen=True)
class Constant:
    """One stored array of an artifact that is open for change.

    Attributes:
        name: unique in the artifact.
        role: ``packed`` for several values to a byte, ``scale`` of quantized weights, ``palette`` for the table that
            indices point into, ``weight`` for everything else: what is stored in a type that numpy has.
        values: as stored; written in place, of the stored shape or flat. Packed values are bytes.
    """

    name: str
    role: Literal["weight", "packed", "scale", "palette"]
    values: NDArray[Any]

    @property
    def is_float(self) -> bool:
        """Whether NaN and Inf can be stored in it."""
        return bool(np.issubdtype(self.values.dtype, np.floating))
