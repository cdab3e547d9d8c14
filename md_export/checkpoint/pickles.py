"""What a ``.bin`` file may ask of torch, checked before torch reads it.

``torch.load(weights_only=True)`` runs no foreign code, but it does call ``bytearray`` and ``torch.Tensor`` with sizes
that the file chooses: a kilobyte of pickle may ask for all memory there is.
"""

from __future__ import annotations

import io
import pickletools
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from md_export.checkpoint.files import shown
from md_export.errors import CheckpointError

# Names and shapes without the values; those of the full-size UNet have 0.1 MB.
_LARGEST_PICKLE: Final = 16 << 20
# Before 2020: magic number, protocol, system, content, storage keys; the values follow.
_LEGACY_PICKLES: Final = 5
_MOST_RECORDS: Final = 100_000
_ALLOWED: Final = frozenset(
    {
        "collections.OrderedDict",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_parameter",
        *(f"torch.{kind}Storage" for kind in ("BFloat16", "Bool", "Byte", "Char", "Double", "Float", "Half")),
        *(f"torch.{kind}Storage" for kind in ("Int", "Long", "Short")),
    }
)


def check_pickles(file: Path) -> None:
    """Raise :class:`CheckpointError` where ``file`` asks for more than tensors.

    What is no pickle raises whatever ``pickletools`` or ``zipfile`` do: ValueError, BadZipFile and the like.
    """
    for stream, count in _pickles(file):
        for _ in range(count):
            for name in _globals(stream):
                if name not in _ALLOWED:
                    raise CheckpointError(
                        f"{file} wants to run code when it is loaded ({shown(name)}) and was refused: "
                        "ask its author for safetensors"
                    )


def _pickles(file: Path) -> Iterator[tuple[io.BytesIO, int]]:
    """Streams, and how many pickles each begins with."""
    if not zipfile.is_zipfile(file):
        with file.open("rb") as handle:
            yield io.BytesIO(handle.read(_LARGEST_PICKLE)), _LEGACY_PICKLES
        return
    with zipfile.ZipFile(file) as archive:
        records = archive.infolist()
        if len(records) > _MOST_RECORDS or any(item.compress_type != zipfile.ZIP_STORED for item in records):
            raise CheckpointError(f"{file} is compressed, which torch.save never does: ask its author for safetensors")
        for item in records:
            # torch finds a name whatever its case.
            pickled = item.filename.lower().endswith(".pkl")
            if item.file_size > _LARGEST_PICKLE and (pickled or "/data/" not in item.filename):
                raise CheckpointError(f"{file} has {item.file_size:,} bytes beside its values: replace it")
            if pickled:
                yield io.BytesIO(archive.read(item)), 1


def _globals(stream: io.BytesIO) -> Iterator[str]:
    """Everything callable that one pickle names, as ``module.name``."""
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name == "GLOBAL":
            yield str(argument).replace(" ", ".", 1)
        elif opcode.name in ("STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"):
            yield f"{opcode.name} {argument or ''}".strip()
