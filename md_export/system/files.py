"""Hashes, limited reading, and writing that never leaves a half-written result under its final name."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from md_export.errors import MdExportError, OutputError
from md_export.system.workspace import workspace

# Bytes, on common file systems.
_LONGEST_NAME = 255


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, or of a folder's files with their relative names in sorted order."""
    if path.is_dir():
        digest = hashlib.sha256()
        for file in sorted(item for item in path.rglob("*") if item.is_file()):
            name = file.relative_to(path).as_posix().encode(errors="surrogateescape")
            digest.update(name + f"\0{sha256_of(file)}\n".encode())
        return digest.hexdigest()
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_of_text(text: str) -> str:
    """Return the SHA-256 of a string in UTF-8."""
    return sha256_of_bytes(text.encode())


def sha256_of_bytes(content: bytes) -> str:
    """Return the SHA-256 of bytes."""
    return hashlib.sha256(content).hexdigest()


def bytes_of(path: Path) -> int:
    """Return the size of a file, or of all files in a folder."""
    if path.is_dir():
        return sum(item.stat().st_size for item in path.rglob("*") if item.is_file())
    return path.stat().st_size


def irregular(path: Path) -> Path | None:
    """Return the first path at or below ``path`` that is neither a file nor a folder; None if all are.

    Opening a pipe without a writer blocks, and reading a device may never end.
    """
    found = (path, *path.rglob("*")) if path.is_dir() else (path,)
    return next((item for item in found if not item.is_file() and not item.is_dir()), None)


def is_plain_name(name: str) -> bool:
    """Return whether an untrusted name cannot lead out of the folder that it is looked up in, on any system."""
    return (
        name not in ("", ".", "..")
        and not set(name) & set("/\\\0")
        and len(name.encode(errors="replace")) <= _LONGEST_NAME
    )


def read_regular(path: Path, limit: int) -> bytes | None:
    """Return the content of a regular file of at most ``limit`` bytes; None for a larger one, a pipe or a device.

    Raises:
        OSError: the file cannot be read.
    """
    # Opening a pipe without a writer would block.
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) or status.st_size > limit:
        return None
    with path.open("rb") as file:
        content = file.read(limit + 1)
    return content if len(content) <= limit else None


def read_limited(path: Path, limit: int, error: type[MdExportError], remedy: str) -> bytes:
    """Return the content of a file of at most ``limit`` bytes; otherwise raise ``error`` with the ``remedy``."""
    try:
        content = read_regular(path, limit)
    except OSError as fault:
        raise error(f"{path} cannot be read: {fault.strerror}; {remedy}") from fault
    if content is None:
        raise error(f"{path} is larger than {limit:,} bytes; {remedy}")
    return content


def refuse_existing(out: Path) -> None:
    """Raise :class:`OutputError` if ``out`` exists."""
    if out.exists() or out.is_symlink():
        raise OutputError(f"{out} exists; nothing was changed. Remove it, or name another folder with -o")


@contextmanager
def staging(out: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``out`` that becomes ``out`` on success and is removed on any failure.

    Raises:
        OutputError: ``out`` exists, or its parent cannot be written.
    """
    refuse_existing(out)
    with workspace(out.parent) as folder:
        yield folder
        refuse_existing(out)
        folder.rename(out)


def require_space(folder: Path, needed: int) -> None:
    """Raise :class:`OutputError` if the disk that will hold ``folder`` has less than ``needed`` bytes free."""
    existing = next(item for item in (folder, *folder.parents) if item.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise OutputError(
            f"{existing} has {free / 1e6:.0f} MB free and this export needs about {needed / 1e6:.0f} MB; "
            "free some space or choose another disk with -o"
        )


def write_whole(path: Path, content: str | bytes, keep_going: bool = False) -> None:
    """Write a small file atomically: under a temporary name, synced to the disk, then renamed.

    ``keep_going``: do nothing if the file cannot be written.
    """
    other = path.with_name(f"{path.name}.{secrets.token_hex(6)}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        other.write_bytes(content.encode() if isinstance(content, str) else content)
        to_disk(other)
        other.replace(path)
    except OSError:
        with suppress(OSError):
            other.unlink(missing_ok=True)
        if not keep_going:
            raise


def copy_file(source: str | Path, destination: str | Path) -> None:
    """Copy a file's content to a new file; the copy shares disk blocks where the file system supports it."""
    with Path(source).open("rb") as given, Path(destination).open("xb") as made:
        left = os.fstat(given.fileno()).st_size
        # copy_file_range is missing outside Linux and fails between some file systems; copyfileobj copies the rest.
        with suppress(OSError, AttributeError):
            while left > 0 and (copied := os.copy_file_range(given.fileno(), made.fileno(), left)):
                left -= copied
        shutil.copyfileobj(given, made)


def to_disk(path: Path) -> None:
    """Sync a file's content, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
