"""What a package really holds: operations, and the bytes of its weights by the type they are stored in."""

from __future__ import annotations

import collections
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np

from md_export.errors import ArtifactError
from md_export.targets.contract import Description
from md_export.targets.coreml.package import WEIGHTS, main_operations, read_spec
from md_export.targets.coreml.quantize import float_weights

# Record of MILBlob's storage format: sentinel, element type, bytes, offset of the data.
_RECORD: Final = struct.Struct("<IIQQ")
_SENTINEL: Final = 0xDEADBEEF
_STORED: Final = {1: "float16", 2: "float32", 3: "uint8", 4: "int8", 6: "int16", 7: "uint16", 14: "int32", 15: "uint32"}


def describe(path: Path) -> Description:
    """Read a package without running it.

    Types come from the weight file's own records, not from what the program declares about them. Constants
    are not counted as operations; weights are the constants of rank ≥ 2 of a convolution, linear, matmul or gather.

    Raises:
        ArtifactError: no readable package, or a weight file that does not belong to the program.
    """
    spec = read_spec(path)
    operations = main_operations(spec)
    blobs = _blobs(path / WEIGHTS, {offset: op.outputs[0].name for op in operations for offset in _offsets(op)})
    stored: collections.Counter[str] = collections.Counter()
    for blob in blobs:
        stored[blob.dtype] += blob.size
    histogram = collections.Counter(op.type for op in operations if op.type != "const")
    return Description(
        stored=dict(sorted(stored.items())),
        ops=dict(sorted(histogram.items())),
        float_weights=tuple(sorted(float_weights(spec))),
        int8_weights=sum(blob.dtype == "int8" for blob in blobs),
        not_finite=tuple(blob.name for blob in blobs if not blob.finite),
    )


@dataclass(frozen=True)
class _Blob:
    """One record of the weight file; ``size`` in bytes."""

    name: str
    dtype: str
    size: int
    finite: bool


def _offsets(op: Any) -> Iterable[int]:
    bound = (argument.value for value in op.inputs.values() for argument in value.arguments)
    for value in (*op.attributes.values(), *bound):
        if value.WhichOneof("value") == "blobFileValue":
            yield int(value.blobFileValue.offset)


def _blobs(file: Path, names: dict[int, str]) -> list[_Blob]:
    if not names:
        return []
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            return [_blob(stream, offset, size, name) for offset, name in sorted(names.items())]
    except OSError as error:
        raise ArtifactError(f"{file} cannot be read: {error.strerror or error}; export the package again") from error


def _blob(stream: BinaryIO, offset: int, size: int, name: str) -> _Blob:
    stream.seek(offset)
    raw = stream.read(_RECORD.size)
    sentinel, code, count, start = _RECORD.unpack(raw) if len(raw) == _RECORD.size else (0, 0, 0, 0)
    if sentinel != _SENTINEL or code not in _STORED or start + count > size:
        raise ArtifactError(f"weight.bin holds no weight at byte {offset}; the package was altered, export it again")
    dtype = _STORED[code]
    if not dtype.startswith("float"):
        return _Blob(name, dtype, count, finite=True)
    stream.seek(start)
    return _Blob(name, dtype, count, bool(np.isfinite(np.frombuffer(stream.read(count), dtype)).all()))
