"""Constants of a saved package: decompress them one at a time, and change them for the self-test of verification."""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from md_export import mil
from md_export.errors import RuntimeFault, raised_as
from md_export.mil.loading import Package
from md_export.mil.values import SENTINEL, BlobFile
from md_export.spec.scheme import QuantScheme
from md_export.targets.coreml.decompress import DECODERS, Constants
from md_export.targets.coreml.package import (
    MODEL,
    PACKED,
    WEIGHTS,
    blobs_of,
    feature_specs,
    main_operations,
    operands_of,
    read_modules,
    read_spec,
)
from md_export.targets.coreml.weights import LEAST_ELEMENTS, WEIGHT_INPUTS, pays
from md_export.targets.stored import Constant, Role, StoredWeight, Use

_ROLES: Final[dict[tuple[str, str], Role]] = {
    **{(kind, "weight"): "weight" for kind in ("conv", "conv_transpose", "linear")},
    **{(kind, "bias"): "bias" for kind in ("conv", "conv_transpose", "linear")},
    **{(kind, "gamma"): "weight" for kind in ("layer_norm", "batch_norm", "instance_norm")},
    **{(kind, "beta"): "bias" for kind in ("layer_norm", "batch_norm", "instance_norm")},
    # Statistics of a batch norm that replaces a multiplication and addition: zeros and ones.
    ("batch_norm", "mean"): "bias",
    ("batch_norm", "variance"): "weight",
    ("gather", "x"): "weight",
    ("matmul", "y"): "weight",
    ("mul", "y"): "weight",
    ("add", "y"): "bias",
}
# Axis of a weight's output channels; the first, except for a transposed convolution.
_MADE: Final = {"conv_transpose": 1}
_EDITED_ROLES: Final = {"scale": "scale", "lut": "palette"}
# numpy's names of types.
_NUMPY: Final = {"fp16": "float16", "fp32": "float32"} | {
    name: name for name in ("int8", "uint8", "int16", "uint16", "int32", "uint32")
}
# MILBlob's codes of the float types.
_CODES: Final = {"float16": 1, "float32": 2}
_ALIGNED: Final = 64


class _Reader(NamedTuple):
    """An operation and the input that reads a value."""

    op: Any
    role: str


def stored_weights(path: Path, scheme: QuantScheme) -> Iterator[StoredWeight]:
    """Yield every constant array and every decompressed weight.

    Raises:
        ArtifactError, RuntimeFault: the package cannot be read, or a weight cannot be decompressed.
    """
    spec, package = read_spec(path), Package(path)
    modules, constants = read_modules(spec), Constants(main_operations(spec), package.weights, DECODERS)
    readers = _readers(main_operations(spec))
    what = f"{path.name}: a weight cannot be decompressed"
    with raised_as(RuntimeFault, what, (ValueError, LookupError, TypeError, RuntimeError), then="; export it again"):
        for name in constants.names:
            weight = constants.decode(name)
            if weight.parts:
                yield _placed(weight, readers[name], modules, scheme)


def _readers(operations: Any) -> dict[str, list[_Reader]]:
    readers: dict[str, list[_Reader]] = defaultdict(list)
    for op in operations:
        for operand in operands_of(op):
            readers[operand.name].append(_Reader(op, operand.role))
    return readers


def _placed(weight: StoredWeight, readers: list[_Reader], modules: dict[str, str], scheme: QuantScheme) -> StoredWeight:
    """Return the weight in torch's layout, with its readers and whether the scheme has a rule for it."""
    uses = tuple(dict.fromkeys(_use(reader, modules) for reader in readers))
    schemes = [scheme.for_module(module) for reader in readers for module in _use(reader, modules).modules]
    promised = any(_is_promised(weight, *item) for item in zip(readers, schemes, strict=True))
    placed = replace(weight, uses=uses, promised=promised)
    turned = any(reader.op.type == "matmul" and reader.role == "y" and not _is_turned(reader.op) for reader in readers)
    return _transposed(placed) if turned and weight.values.ndim == 2 else placed


def _use(reader: _Reader, modules: dict[str, str]) -> Use:
    module = modules.get(reader.op.outputs[0].name, "") if reader.op.outputs else ""
    return Use((module,), _ROLES.get((reader.op.type, reader.role), ""))


def _is_promised(weight: StoredWeight, reader: _Reader, scheme: QuantScheme) -> bool:
    """Whether the scheme must compress a weight: it is multiplied or looked up, and larger than its palette.

    ``scheme``: scheme of the module that reads it.
    """
    shape = weight.values.shape
    if reader.role not in WEIGHT_INPUTS.get(reader.op.type, ()) or len(shape) < 2 or prod(shape) < LEAST_ELEMENTS:
        return False
    compressed = weight.palette is not None
    return compressed or pays(shape, _MADE.get(reader.op.type, 0), 2 if weight.half else 4, scheme)


def _is_turned(op: Any) -> bool:
    bound = op.inputs["transpose_y"].arguments
    return bool(bound and any(item.value.immediateValue.tensor.bools.values[:1] == [True] for item in bound))


def _transposed(weight: StoredWeight) -> StoredWeight:
    grid = weight.grid and replace(weight.grid, steps=weight.grid.steps.T)
    palette = weight.palette and replace(weight.palette, tables=np.swapaxes(weight.palette.tables, 0, 1))
    kept = None if weight.kept is None else weight.kept.T
    return replace(weight, values=weight.values.T, grid=grid, palette=palette, kept=kept)


@contextmanager
def edit(path: Path) -> Iterator[list[Constant]]:
    """Yield the constants of the weight file in the order of the program; changes in place are saved at the end."""
    file = path / WEIGHTS
    content, blobs = bytearray(file.read_bytes()), BlobFile(file)
    yield [
        _constant(content, blobs, op.outputs[0].name, *blob)
        for op in main_operations(read_spec(path))
        for blob in sorted(blobs_of(op), key=lambda blob: blob.role)
    ]
    file.write_bytes(content)


def _constant(content: bytearray, blobs: BlobFile, name: str, role: str, offset: int) -> Constant:
    record = blobs.record(offset)
    raw = np.frombuffer(content, np.uint8, record.nbytes, record.start)
    if record.dtype not in _NUMPY or role in PACKED:
        return Constant(f"{name}.{role}", "packed", raw)
    kind: Any = _EDITED_ROLES.get(role, "weight")
    return Constant(f"{name}.{role}", kind, raw.view(_NUMPY[record.dtype]))


def store_as_float(path: Path) -> bool:
    """Store each compressed weight as a new constant with its float values; return False without any."""
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
    """Append a blob to a weight file and return the offset of its record."""
    content.extend(bytes(-len(content) % _ALIGNED))
    offset = len(content)
    record = struct.pack("<IIQQQ", SENTINEL, _CODES[values.dtype.name], values.nbytes, offset + _ALIGNED, 0)
    content.extend(record.ljust(_ALIGNED, b"\0") + values.tobytes())
    struct.pack_into("<I", content, 0, struct.unpack_from("<I", content)[0] + 1)
    return offset
