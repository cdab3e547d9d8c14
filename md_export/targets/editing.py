"""What the gate's self-test changes in a saved artifact on purpose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray


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
