"""Change what a Core ML package stores, for the gate's self-test."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np

from md_export.targets.coreml import mil
from md_export.targets.coreml.mil.blob import SENTINEL, BlobFile
from md_export.targets.coreml.package import MODEL, WEIGHTS, main_operations, read_spec
from md_export.targets.coreml.surface import feature_specs
from md_export.targets.editing import Constant

_ROLES: Final = {"scale": "scale", "lut": "palette"}
# numpy's names of the types that it has.
_NUMPY: Final = {"fp16": "float16", "fp32": "float32"} | {
    name: name for name in ("int8", "uint8", "int16", "uint16", "int32", "uint32")
}
# Roles of what constexpr_* operations keep several to a byte, whatever type the record names.
_PACKED: Final = ("indices", "mask")
# MILBlob's codes of the two float types.
_CODES: Final = {"float16": 1, "float32": 2}
_ALIGNED: Final = 64


@contextmanager
def edit(path: Path) -> Iterator[list[Constant]]:
    """Every constant of the weight file in the order of the program; what was written in place is saved."""
    file = path / WEIGHTS
    content, blobs = bytearray(file.read_bytes()), BlobFile(file)
    yield [_constant(content, blobs, *use) for op in main_operations(read_spec(path)) for use in _uses(op)]
    file.write_bytes(content)


def _uses(op: Any) -> Iterator[tuple[str, str, int]]:
    """Output name, role and record of each blob that an operation takes."""
    bound = [(role, argument.value) for role, value in op.inputs.items() for argument in value.arguments]
    for role, value in sorted((*op.attributes.items(), *bound), key=lambda item: item[0]):
        if value.WhichOneof("value") == "blobFileValue":
            yield op.outputs[0].name, role, int(value.blobFileValue.offset)


def _constant(content: bytearray, blobs: BlobFile, name: str, role: str, offset: int) -> Constant:
    record = blobs.record(offset)
    raw = np.frombuffer(content, np.uint8, record.nbytes, record.start)
    if record.dtype not in _NUMPY or role in _PACKED:
        return Constant(f"{name}.{role}", "packed", raw)
    kind: Any = _ROLES.get(role, "weight")
    return Constant(f"{name}.{role}", kind, raw.view(_NUMPY[record.dtype]))


def store_as_float(path: Path) -> bool:
    """Store each compressed weight as the float that it stands for, in a constant of its own. False where none is."""
    spec = read_spec(path)
    compressed = {op.outputs[0].name: op for op in main_operations(spec) if op.type.startswith("constexpr_")}
    inputs = {item.name: item.zeros() for item in feature_specs(spec.description.input)}
    values = mil.load(path).predict(inputs, keep=compressed)
    content = bytearray((path / WEIGHTS).read_bytes())
    for name, op in compressed.items():
        op.type = "const"
        op.inputs.clear()
        for role in set(op.attributes) - {"name"}:
            del op.attributes[role]
        held = op.attributes["val"]
        held.type.CopyFrom(op.outputs[0].type)
        held.blobFileValue.fileName = "@model_path/weights/weight.bin"
        held.blobFileValue.offset = _append(content, values[name])
    (path / WEIGHTS).write_bytes(content)
    (path / MODEL).write_bytes(spec.SerializeToString(deterministic=True))
    return bool(compressed)


def _append(content: bytearray, values: np.ndarray[Any, Any]) -> int:
    """Add a blob to a weight file; returns the offset of its record."""
    content.extend(bytes(-len(content) % _ALIGNED))
    offset = len(content)
    record = struct.pack("<IIQQQ", SENTINEL, _CODES[values.dtype.name], values.nbytes, offset + _ALIGNED, 0)
    content.extend(record.ljust(_ALIGNED, b"\0") + values.tobytes())
    struct.pack_into("<I", content, 0, struct.unpack_from("<I", content)[0] + 1)
    return offset
