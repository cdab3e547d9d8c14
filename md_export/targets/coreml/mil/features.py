"""The surface of a model: what ``predict`` takes and gives, as the package's description says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from md_export.errors import RuntimeFault

Array = NDArray[Any]

# ArrayFeatureType.ArrayDataType → numpy.
_ARRAY_DTYPES = {65568: "float32", 65600: "float64", 131104: "int32", 65552: "float16", 131080: "int8"}


@dataclass(frozen=True)
class Feature:
    """One input or output.

    Attributes:
        name: as ``predict`` uses it.
        shape: of the array; for a flexible input, the default shape; empty where the description gives none.
        dtype: numpy name.
        flexible: whether other shapes are allowed.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    flexible: bool

    def cast(self, array: Any) -> Array:
        """``array`` in this feature's dtype, as Core ML casts what it is given.

        Raises:
            RuntimeFault: not numeric, or of another shape.
        """
        given = np.asarray(array)
        if given.dtype.kind not in "fiub":
            raise RuntimeFault(f"input {self.name}: an array of dtype {given.dtype}; give numbers")
        if not self.flexible and given.shape != self.shape:
            raise RuntimeFault(f"input {self.name}: shape {list(given.shape)}, the model takes {list(self.shape)}")
        return np.ascontiguousarray(given, dtype=self.dtype).reshape(given.shape)


def features(descriptions: Any) -> tuple[Feature, ...]:
    """``FeatureDescription`` messages as features.

    Raises:
        RuntimeFault: an image, dictionary or other feature that is no array.
    """
    return tuple(_feature(item) for item in descriptions)


def _feature(proto: Any) -> Feature:
    kind = proto.type.WhichOneof("Type")
    if kind != "multiArrayType":
        raise RuntimeFault(f"{proto.name} is a feature of {kind}; this runtime takes multi-arrays only")
    array = proto.type.multiArrayType
    dtype = _ARRAY_DTYPES.get(array.dataType)
    if dtype is None:
        raise RuntimeFault(
            f"{proto.name} is a multi-array of data type {array.dataType}, which this runtime does not know"
        )
    flexible = array.WhichOneof("ShapeFlexibility") is not None
    return Feature(proto.name, tuple(int(d) for d in array.shape), dtype, flexible)
