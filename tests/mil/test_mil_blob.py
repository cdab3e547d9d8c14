"""The weight file reader against coremltools' own writer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from md_export.errors import RuntimeFault
from md_export.mil.dtypes import DTYPES, unpack_bits
from md_export.mil.values import BLOB_DTYPES, BlobFile

WRITERS = {"fp32": "float", "fp16": "fp16"}


def _values(name: str, count: int) -> np.ndarray[Any, Any]:
    dtype = DTYPES[name]
    rng = np.random.default_rng(dtype.bits)
    if dtype.kind == "float":
        return rng.standard_normal(count).astype(dtype.stored)
    low = -(1 << (dtype.bits - 1)) if dtype.signed else 0
    return rng.integers(low, low + (1 << dtype.bits), count, dtype=np.int64).astype(dtype.stored)


def _write(path: Path, name: str, values: np.ndarray[Any, Any]) -> int:
    from coremltools.converters.mil.mil import types
    from coremltools.libmilstoragepython import _BlobStorageWriter

    writer = _BlobStorageWriter(str(path))
    given = values.view(np.uint16) if name == "fp16" else values
    if DTYPES[name].bits < 8:
        given = values.astype(types.nptype_from_builtin(types.string_to_builtin(name)))
    offset: int = getattr(writer, f"write_{WRITERS.get(name, name)}_data")(given)
    return offset


@pytest.mark.parametrize("name", sorted(BLOB_DTYPES.values()))
def test_every_type_comes_back(tmp_path: Path, name: str) -> None:
    # 21 elements leave padding bits in the last byte of every sub-byte type.
    values = _values(name, 21)
    path = tmp_path / "weight.bin"
    offset = _write(path, name, values)
    assert np.array_equal(BlobFile(path).read(offset, DTYPES[name], (3, 7)), values.reshape(3, 7))


def test_nothing_but_the_declared_blob_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "weight.bin"
    offset = _write(path, "fp16", _values("fp16", 21))
    file = BlobFile(path)
    with pytest.raises(RuntimeFault, match="is fp16, the program declares int16"):
        file.read(offset, DTYPES["int16"], (21,))
    with pytest.raises(RuntimeFault, match="has 42 bytes"):
        file.read(offset, DTYPES["fp16"], (22,))
    with pytest.raises(RuntimeFault, match="no blob at 0"):
        file.read(0, DTYPES["fp16"], (21,))
    with pytest.raises(RuntimeFault, match="ends before"):
        file.read(1 << 20, DTYPES["fp16"], (21,))


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weight.bin"
    offset = _write(path, "fp32", _values("fp32", 21))
    path.write_bytes(path.read_bytes()[: offset + 64 + 20])
    with pytest.raises(RuntimeFault, match="ends inside"):
        BlobFile(path).read(offset, DTYPES["fp32"], (21,))
    path.write_bytes(b"short")
    with pytest.raises(RuntimeFault, match="no weight file"):
        BlobFile(path)
    path.write_bytes(b"")
    with pytest.raises(RuntimeFault, match="cannot be opened"):
        BlobFile(path)


def test_packed_bits_start_at_the_least_significant_one() -> None:
    # coremltools' docstring of constexpr_lut_to_dense: i0 = 0, i1 = 3, i2 = 2, i3 = 1, i4 = 3 at two bits each.
    packed = np.array([0b01101100, 0b00000011], np.uint8)
    assert unpack_bits(packed, DTYPES["uint2"], 5).tolist() == [0, 3, 2, 1, 3]
    assert unpack_bits(np.array([0xF8], np.uint8), DTYPES["int4"], 2).tolist() == [-8, -1]
