"""A constant of a .tflite file as the numbers that it stands for."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from md_export.errors import RuntimeFault
from md_export.spec.tensors import Array
from md_export.targets.stored import Float32, along
from md_export.targets.tflite.flatbuffer import DTYPES, data_of, shape_of


@dataclass(frozen=True)
class Decoded:
    """One constant.

    Attributes:
        dtype: in which it is stored.
        values: float32 of what is stored in float16, or in integers with a scale; else as stored.
        steps: scales of integers, laid along their axis; None where there is none.
    """

    dtype: str
    values: Array
    steps: Float32 | None


def decode(model: Any, tensor: Any) -> Decoded:
    """A constant of the ``ModelT`` that ``read_model`` gives.

    Raises:
        RuntimeFault: it is stored in a way that is not read here.
        ValueError: it has fewer bytes than its shape says.
    """
    dtype, scheme, shape = DTYPES.get(tensor.type), tensor.quantization, shape_of(tensor)
    if dtype is None or (scheme is not None and scheme.details is not None):
        raise RuntimeFault(f"{tensor.name.decode()}: stored in a type that is not read here; export it in another one")
    raw = data_of(model, tensor)
    plain: Array = (_nibbles(raw)[: prod(shape)] if dtype == "int4" else raw.view(dtype)).reshape(shape)
    if scheme is None or scheme.scale is None or not len(scheme.scale):
        return Decoded(dtype, plain.astype(np.float32) if dtype == "float16" else plain, None)
    steps = along(scheme.scale, plain.ndim, scheme.quantizedDimension)
    zero = 0 if scheme.zeroPoint is None else along(scheme.zeroPoint, plain.ndim, scheme.quantizedDimension)
    return Decoded(dtype, (plain.astype(np.float32) - zero) * steps, steps)


def _nibbles(raw: NDArray[np.uint8]) -> NDArray[np.int8]:
    """Two's complement of 4 bits, the lower half of each byte first."""
    halves = np.stack([raw << 4, raw], axis=-1).view(np.int8).reshape(-1)
    return halves >> 4
