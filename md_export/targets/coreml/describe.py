"""What a package really holds: operations, and the bytes of its weights by the type they are stored in."""

from __future__ import annotations

import collections
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np

from md_export.errors import ArtifactError, RuntimeFault
from md_export.targets.contract import Description
from md_export.targets.coreml.mil.blob import BlobFile
from md_export.targets.coreml.modules import KEY
from md_export.targets.coreml.package import WEIGHTS, main_operations, read_spec
from md_export.targets.coreml.weights import float_weights
from md_export.targets.notes import notes_among

# numpy's names, as in recipes, of types that MIL calls otherwise.
_NAMES: Final = {"fp16": "float16", "fp32": "float32"}
# What constexpr_lut_to_dense and constexpr_sparse_to_dense call them.
_PACKED: Final = ("indices", "mask")
_MULTIPLIES: Final = ("conv", "linear")


def describe(path: Path) -> Description:
    """Read a package without running it.

    Types come from the weight file's own records, not from what the program declares about them; where a system
    before iOS 18 has indices or a mask packed into bytes, from how many bytes they take. Constants are not
    counted as operations; weights are the constants of rank ≥ 2 of a convolution, linear, matmul or gather.

    Raises:
        ArtifactError: no readable package, or a weight file that does not belong to the program.
    """
    spec = read_spec(path)
    operations, pairs = main_operations(spec), spec.description.metadata.userDefined
    blobs = _blobs(path / WEIGHTS, dict(use for op in operations for use in _uses(op)))
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
        int8_inputs=_int8_inputs(operations),
        notes=notes_among({name: value for name, value in pairs.items() if name != KEY}),
    )


def _int8_inputs(operations: Any) -> float:
    """Share of the convolutions and linears whose input was just dequantized."""
    made_by = {op.outputs[0].name: op.type for op in operations if op.outputs}
    inputs = [op.inputs["x"].arguments[0].name for op in operations if op.type in _MULTIPLIES]
    taking = [name for name in inputs if made_by.get(name) == "dequantize"]
    return len(taking) / max(1, len(inputs))


@dataclass(frozen=True)
class _Use:
    """A record of the weight file as an operation takes it.

    Attributes:
        packed: elements that lie in its bytes, where those are indices into a palette or a mask.
    """

    name: str
    packed: int | None


@dataclass(frozen=True)
class _Blob:
    """One record of the weight file; ``size`` in bytes."""

    name: str
    dtype: str
    size: int
    finite: bool


def _uses(op: Any) -> Iterable[tuple[int, _Use]]:
    bound = [(role, argument.value) for role, value in op.inputs.items() for argument in value.arguments]
    for role, value in (*op.attributes.items(), *bound):
        if value.WhichOneof("value") == "blobFileValue":
            packed = _elements(op.outputs[0]) if role in _PACKED and op.type.startswith("constexpr_") else None
            yield int(value.blobFileValue.offset), _Use(op.outputs[0].name, packed)


def _elements(value: Any) -> int:
    return prod(dimension.constant.size for dimension in value.type.tensorType.dimensions)


def _blobs(file: Path, uses: dict[int, _Use]) -> list[_Blob]:
    if not uses:
        return []
    try:
        weights = BlobFile(file)
    except RuntimeFault as error:
        raise ArtifactError(str(error)) from error
    return [_blob(weights, offset, use) for offset, use in sorted(uses.items())]


def _blob(weights: BlobFile, offset: int, use: _Use) -> _Blob:
    try:
        record = weights.record(offset)
    except RuntimeFault as error:
        raise ArtifactError(
            f"weight.bin holds no weight at byte {offset}; the package was altered, export it again"
        ) from error
    dtype = _NAMES.get(record.dtype, record.dtype)
    if dtype == "uint8" and use.packed:
        dtype = f"uint{8 * record.nbytes // use.packed}"
    finite = not dtype.startswith("float") or bool(np.isfinite(weights.raw(record).view(dtype)).all())
    return _Blob(use.name, dtype, record.nbytes, finite)
