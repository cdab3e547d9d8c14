"""Files that are there whole or not at all, also after a power cut."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path


def write_whole(path: Path, text: str, keep_going: bool = False) -> None:
    """Write a small file under another name, bring it to the disk, and give it its own name.

    ``keep_going``: what could not be written does not matter.
    """
    other = path.with_name(f"{path.name}.{secrets.token_hex(6)}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        other.write_text(text, encoding="utf-8")
        to_disk(other)
        other.replace(path)
    except OSError:
        with suppress(OSError):
            other.unlink(missing_ok=True)
        if not keep_going:
            raise


def to_disk(path: Path) -> None:
    """Wait until a file's content, or a folder's names, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
