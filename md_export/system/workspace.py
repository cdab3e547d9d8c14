"""Folders for work in progress whose names show that they are no result, and that are swept when their process ends.

A lock file beside each folder is held as long as its process lives, however it ends. No process number is compared, so
a number that was given out again, or another container on the same disk, does no harm.
"""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from md_export.errors import OutputError

PREFIX: Final = ".md-export-"
_LOCK: Final = ".lock"


@contextmanager
def workspace(parent: Path) -> Iterator[Path]:
    """Yield a new folder in ``parent`` and remove it at the end; those of dead processes are removed at the start.

    Raises:
        OutputError: ``parent`` cannot be written.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
        sweep(parent)
        folder, lock = _claim(parent)
    except OSError as error:
        raise OutputError(f"{parent} cannot be written: {error.strerror}; choose another folder") from error
    try:
        folder.mkdir()
        yield folder
    finally:
        _remove(folder, lock)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yield a new folder for temporary files, in TMPDIR; raises as :func:`workspace`."""
    with workspace(Path(tempfile.gettempdir())) as folder:
        yield folder


def sweep(parent: Path) -> None:
    """Remove what dead processes left in ``parent``; another user's cannot be removed."""
    for path in parent.glob(f"{PREFIX}*{_LOCK}"):
        with suppress(PermissionError):
            if (lock := _hold(path)) is not None:
                _remove(path.with_suffix(""), lock)


def is_in_use(parent: Path) -> bool:
    """Whether a process works in ``parent`` now."""
    sweep(parent)
    return any(parent.glob(f"{PREFIX}*{_LOCK}"))


def _claim(parent: Path) -> tuple[Path, FileLock]:
    """Return the path of a new folder and its lock, which is held."""
    while True:
        folder = parent / f"{PREFIX}{secrets.token_hex(8)}"
        lock = _hold(_lock_of(folder))
        # Another process may have swept the file before it was locked.
        if lock is not None and _lock_of(folder).exists():
            return folder, lock


def _lock_of(folder: Path) -> Path:
    return folder.with_name(folder.name + _LOCK)


def _hold(path: Path) -> FileLock | None:
    """Return the lock, held; None where another process holds it."""
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        return None
    return lock


def _remove(folder: Path, lock: FileLock) -> None:
    """Remove the folder, then its lock file; what cannot be removed is swept another time."""
    shutil.rmtree(folder, ignore_errors=True)
    if not folder.exists():
        _lock_of(folder).unlink(missing_ok=True)
    lock.release()
