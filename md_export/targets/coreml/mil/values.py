"""Decode a ``MIL_pb2.Value``, immediate or in the weight file."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from md_export.errors import RuntimeFault
from md_export.targets.coreml.mil.blob import BlobFile
from md_export.targets.coreml.mil.dtypes import TensorType, parse_type, to_carrier, unpack_bits

# A run-time value: a tensor, or a Python string for MIL's string type.
Value = torch.Tensor | str


def decode(proto: Any, weights: Callable[[str], BlobFile]) -> Value:
    """The value of a constant: a tensor of the declared type's carrier, or a string.

    Args:
        proto: the ``Value`` message.
        weights: opens the weight file of that name in the package.

    Raises:
        RuntimeFault: a list, tuple or dictionary, or data that does not fit the declared type.
    """
    declared = parse_type(proto.type)
    if not isinstance(declared, TensorType) or declared.shape is None or None in declared.shape:
        raise RuntimeFault(f"a constant of type {declared} is outside this runtime's scope")
    shape = tuple(int(d or 0) for d in declared.shape)
    if proto.WhichOneof("value") == "blobFileValue":
        blob = proto.blobFileValue
        return to_carrier(weights(blob.fileName).read(blob.offset, declared.dtype, shape), declared.dtype)
    tensor = proto.immediateValue.tensor
    if declared.dtype.kind == "string":
        if math.prod(shape) != 1:
            raise RuntimeFault("a constant with more than one string is outside this runtime's scope")
        return str(tensor.strings.values[0])
    return to_carrier(_immediate(tensor, declared, shape), declared.dtype)


def _immediate(tensor: Any, declared: TensorType, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    count = math.prod(shape)
    dtype = declared.dtype
    field = tensor.WhichOneof("value")
    if field is None or count == 0:
        return np.zeros(shape, dtype.stored)
    values = getattr(tensor, field).values
    if field != "bytes":
        array = np.asarray(values, dtype=dtype.stored)
    elif dtype.bits < 8:
        array = unpack_bits(np.frombuffer(values, np.uint8), dtype, count)
    else:
        # frombuffer is read-only; torch wants writable memory.
        array = np.frombuffer(values, dtype.stored).copy()
    if array.size != count:
        raise RuntimeFault(f"a constant of type {declared} holds {array.size} elements")
    return array.reshape(shape)
