"""Values of a program, immediate or in the weight file."""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from md_export.errors import RuntimeFault, raised_as
from md_export.mil.dtypes import Dtype, TensorType, parse_type, to_carrier, unpack_bits

SENTINEL = 0xDEADBEEF
VERSION = 2
_HEADER = struct.Struct("<II")
_RECORD = struct.Struct("<IIQQQ")
_RECORD_BYTES = 64

# MILBlob's own numbering of element types, unrelated to the one in MIL.proto.
BLOB_DTYPES = {
    1: "fp16",
    2: "fp32",
    3: "uint8",
    4: "int8",
    6: "int16",
    7: "uint16",
    8: "int4",
    9: "uint1",
    10: "uint2",
    11: "uint4",
    12: "uint3",
    13: "uint6",
    14: "int32",
    15: "uint32",
}
# A run-time value: a tensor, or a Python string for MIL's string type.
Value = torch.Tensor | str


class Record(NamedTuple):
    """Record of a blob: MIL's name of its element type, where its data start, and their number of bytes."""

    dtype: str
    start: int
    nbytes: int


class BlobFile:
    """A memory-mapped weight file; nothing is read before a blob is asked for.

    Layout (MILBlob's storage format version 2, little-endian): a 64-byte header (``uint32`` number of blobs,
    ``uint32`` version), then blobs. Each blob is a 64-byte record (``uint32`` 0xDEADBEEF, ``uint32`` element type,
    ``uint64`` bytes of data, ``uint64`` offset of the data in the file, ``uint64`` padding bits at the end of the
    data) and its data, both aligned to 64 bytes. A program refers to the record's offset.
    """

    def __init__(self, path: Path) -> None:
        what, then = f"{path.name} cannot be opened", "; convert the model again"
        with raised_as(RuntimeFault, what, (OSError, ValueError), then), path.open("rb") as file:
            # Copy-on-write: torch wants writable memory, the file must not change.
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self._bytes = np.frombuffer(self._map, np.uint8)
        self._name = path.name
        if len(self._bytes) < _RECORD_BYTES or self._unpack(_HEADER, 0)[1] != VERSION:
            raise RuntimeFault(f"{path.name} is no weight file of version {VERSION}; convert the model again")

    def read(self, offset: int, dtype: Dtype, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
        """The blob whose record is at ``offset``, as an array of ``shape``.

        Whole-byte types are a view of the mapping; sub-byte types are unpacked to int8 or uint8.

        Raises:
            RuntimeFault: no blob there, or one of another type or size than the program declares.
        """
        record, count = self.record(offset), math.prod(shape)
        if record.dtype != dtype.name:
            raise RuntimeFault(
                f"{self._name}: the blob at {offset} is {record.dtype}, the program declares {dtype.name}"
            )
        if record.nbytes != math.ceil(count * dtype.bits / 8):
            raise RuntimeFault(
                f"{self._name}: the blob at {offset} has {record.nbytes} bytes, {dtype.name}{list(shape)} needs others"
            )
        raw = self.raw(record)
        if dtype.bits < 8:
            return unpack_bits(raw, dtype, count).reshape(shape)
        return np.asarray(raw).view(dtype.stored).reshape(shape)

    def record(self, offset: int) -> Record:
        """The record at ``offset``.

        Raises:
            RuntimeFault: none is there, its type is unknown, or its data end outside the file.
        """
        if offset + _RECORD_BYTES > len(self._bytes):
            raise RuntimeFault(f"{self._name} ends before the blob at {offset}; the package is truncated")
        sentinel, code, nbytes, start, _ = self._unpack(_RECORD, offset)
        if sentinel != SENTINEL:
            raise RuntimeFault(
                f"{self._name} has no blob at {offset}; the program and its weights do not belong together"
            )
        if start + nbytes > len(self._bytes):
            raise RuntimeFault(f"{self._name} ends inside the blob at {offset}; the package is truncated")
        if code not in BLOB_DTYPES:
            raise RuntimeFault(f"{self._name}: the blob at {offset} is of unknown type {code}; convert the model again")
        return Record(BLOB_DTYPES[code], start, nbytes)

    def raw(self, record: Record) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """A blob's bytes, a view of the mapping."""
        return self._bytes[record.start : record.start + record.nbytes]

    def _unpack(self, layout: struct.Struct, offset: int) -> tuple[int, ...]:
        return layout.unpack_from(self._map, offset)


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
