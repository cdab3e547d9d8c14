"""Temporary folders for work in progress; those of processes that have ended are removed.

Each process holds a lock file beside its folder until it ends, in whatever way. Process numbers are not compared,
because numbers are reused and another container on the same disk has its own.
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
    """Yield a new folder in ``parent`` and remove it at the end; first remove those of processes that have ended.

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
    """Remove the folders of ended processes in ``parent``, except those of other users."""
    for path in parent.glob(f"{PREFIX}*{_LOCK}"):
        with suppress(PermissionError):
            if (lock := _hold(path)) is not None:
                _remove(path.with_suffix(""), lock)


def is_in_use(parent: Path) -> bool:
    """Return whether a running process has a folder in ``parent``."""
    sweep(parent)
    return any(parent.glob(f"{PREFIX}*{_LOCK}"))


def _claim(parent: Path) -> tuple[Path, FileLock]:
    """Return the path of a new folder and its acquired lock."""
    while True:
        folder = parent / f"{PREFIX}{secrets.token_hex(8)}"
        lock = _hold(_lock_of(folder))
        # Another process may have swept the file before it was locked.
        if lock is not None and _lock_of(folder).exists():
            return folder, lock


def _lock_of(folder: Path) -> Path:
    return folder.with_name(folder.name + _LOCK)


def _hold(path: Path) -> FileLock | None:
    """Return the acquired lock; None if another process holds it."""
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        return None
    return lock


def _remove(folder: Path, lock: FileLock) -> None:
    """Remove the folder, then its lock file; a folder that cannot be removed keeps its lock file for the next sweep."""
    shutil.rmtree(folder, ignore_errors=True)
    if not folder.exists():
        _lock_of(folder).unlink(missing_ok=True)
    lock.release()
