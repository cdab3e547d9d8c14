"""Folders for work in progress that nobody mistakes for a result, and that are swept when their process is gone.

A lock file beside each folder is held (``flock``) as long as its process lives, however it ends: no process number
is compared, so a number that was given out again, or another container on the same disk, cannot be taken for it.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from md_export.errors import OutputError

PREFIX: Final = ".md-export-"
_LOCK: Final = ".lock"


@contextmanager
def workspace(parent: Path) -> Iterator[Path]:
    """A new folder in ``parent`` that is removed at the end; those of dead processes are removed at the start.

    Raises:
        OutputError: ``parent`` cannot be written.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
        sweep(parent)
        name, lock = _claim(parent)
    except OSError as error:
        raise OutputError(f"{parent} cannot be written: {error.strerror}; choose another folder") from error
    folder = parent / name
    try:
        folder.mkdir()
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _release(folder, lock)


def sweep(parent: Path) -> None:
    """Remove what dead processes left in ``parent``."""
    for path in parent.glob(f"{PREFIX}*{_LOCK}"):
        lock = _hold(path, os.O_RDWR)
        if lock is not None:
            folder = path.with_suffix("")
            shutil.rmtree(folder, ignore_errors=True)
            _release(folder, lock)


def is_in_use(parent: Path) -> bool:
    """Whether a process works in ``parent`` now."""
    sweep(parent)
    return any(parent.glob(f"{PREFIX}*{_LOCK}"))


def _claim(parent: Path) -> tuple[str, int]:
    while True:
        name = f"{PREFIX}{secrets.token_hex(8)}"
        path = parent / f"{name}{_LOCK}"
        lock = _hold(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        if lock is None:
            continue
        # Somebody else may have swept it before it was locked.
        if os.fstat(lock).st_nlink:
            return name, lock
        os.close(lock)


def _hold(path: Path, flags: int) -> int | None:
    """An open and locked file; None where it is gone, or another process holds it."""
    try:
        lock = os.open(path, flags | os.O_CLOEXEC, 0o644)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


def _release(folder: Path, lock: int) -> None:
    """The lock file goes last: what could not be removed is swept another time."""
    if not folder.exists():
        folder.with_name(f"{folder.name}{_LOCK}").unlink(missing_ok=True)
    os.close(lock)
