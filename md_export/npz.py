"""Arrays from and to ``.npz`` files, as ``md-export run`` takes and gives them."""

from __future__ import annotations

import os
import tempfile
import zipfile
from pathlib import Path
from typing import Final

import numpy as np

from md_export.errors import UsageError
from md_export.tensors import Array, Arrays

# The largest input of any artifact, a 768² picture, has 7 MB.
_LARGEST: Final = 1 << 30


def read_npz(path: Path) -> dict[str, Array]:
    """Read named arrays; never unpickles.

    Raises:
        UsageError: no such file, or not an .npz file of plain arrays.
    """
    if not path.is_file():
        raise UsageError(f"{path} does not exist; --inputs takes an .npz file with one array per input")
    try:
        with np.load(path, allow_pickle=False) as archive:
            if sum(item.file_size for item in archive.zip.infolist()) > _LARGEST:
                raise UsageError(f"{path} unpacks to more than {_LARGEST:,} bytes; --inputs takes one array per input")
            return {name: archive[name] for name in archive.files}
    except (ValueError, OSError, zipfile.BadZipFile, EOFError, AttributeError, MemoryError) as error:
        raise UsageError(f"{path} is not an .npz file of plain arrays: {error}") from error


def write_npz(path: Path, arrays: Arrays) -> None:
    """Write named arrays; the file appears whole or not at all."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial.npz", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        np.savez(temporary, **dict(arrays))  # type: ignore[arg-type]  # stubs take allow_pickle for one of the names
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
