"""What a package really holds: operations, and the bytes of its weights by the type they are stored in."""

from __future__ import annotations

import collections
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, Final

from md_export.errors import ArtifactError
from md_export.targets.coreml.package import WEIGHTS, main_operations, read_spec
from md_export.targets.coreml.quantize import float_weights
from md_export.targets.coreml.surface import feature_specs

# Record of MILBlob's storage format: sentinel, element type, bytes, offset of the data.
_RECORD: Final = struct.Struct("<IIQQ")
_SENTINEL: Final = 0xDEADBEEF
_STORED: Final = {1: "float16", 2: "float32", 3: "uint8", 4: "int8", 6: "int16", 7: "uint16", 14: "int32", 15: "uint32"}


def describe(path: Path) -> dict[str, Any]:
    """Read a package without running it.

    Types come from the weight file's own records, not from what the program declares about them.

    Returns:
        ``operators``: count by type, constants left out. ``weight_bytes``: bytes in the weight file by
        stored type. ``float_weights``: names of weights of rank ≥ 2 that are stored in float.
        ``inputs`` and ``outputs``: tensor specs. ``specification``: Core ML's version number.

    Raises:
        ArtifactError: no readable package, or a weight file that does not belong to the program.
    """
    spec = read_spec(path)
    operations = main_operations(spec)
    histogram = collections.Counter(op.type for op in operations if op.type != "const")
    return {
        "operators": dict(sorted(histogram.items())),
        "weight_bytes": _weight_bytes(path / WEIGHTS, {offset for op in operations for offset in _offsets(op)}),
        "float_weights": tuple(sorted(float_weights(spec))),
        "inputs": feature_specs(spec.description.input),
        "outputs": feature_specs(spec.description.output),
        "specification": int(spec.specificationVersion),
    }


def _offsets(op: Any) -> Iterable[int]:
    bound = (argument.value for value in op.inputs.values() for argument in value.arguments)
    for value in (*op.attributes.values(), *bound):
        if value.WhichOneof("value") == "blobFileValue":
            yield int(value.blobFileValue.offset)


def _weight_bytes(file: Path, offsets: set[int]) -> dict[str, int]:
    if not offsets:
        return {}
    totals: collections.Counter[str] = collections.Counter()
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            for offset in offsets:
                stored, count = _record(stream, offset, size)
                totals[stored] += count
    except OSError as error:
        raise ArtifactError(f"{file} cannot be read: {error.strerror or error}; export the package again") from error
    return dict(sorted(totals.items()))


def _record(stream: BinaryIO, offset: int, size: int) -> tuple[str, int]:
    stream.seek(offset)
    raw = stream.read(_RECORD.size)
    sentinel, code, count, start = _RECORD.unpack(raw) if len(raw) == _RECORD.size else (0, 0, 0, 0)
    if sentinel != _SENTINEL or code not in _STORED or start + count > size:
        raise ArtifactError(f"weight.bin holds no weight at byte {offset}; the package was altered, export it again")
    return _STORED[code], count
