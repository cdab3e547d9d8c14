"""Entries of the cache → an export folder under its name, whole or not at all."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from md_export.engine.cache import Cache, Entry
from md_export.engine.keys import Seen, files_in
from md_export.errors import ArtifactError, OutputError
from md_export.spec.manifest import MANIFEST
from md_export.system.files import to_disk

_CHUNK: Final = 1 << 20
_ATTEMPTS: Final = 5


def expected(entry: Entry) -> dict[str, str]:
    """SHA-256 of every file of an export, by its path there, from the entry of its last step."""
    others: dict[str, Any] = entry.value["others"]
    return {name: str(digest) for name, digest in others.items()} | {
        name: file.sha256 for name, file in entry.files.items()
    }


def is_placed(folder: Path, entry: Entry, seen: Seen) -> bool:
    """Whether the folder holds these files, and no others in folders of theirs; unchanged ones are not read again."""
    wanted = expected(entry)
    if files_in(folder, {name.split("/", 1)[0] for name in wanted}) != sorted(wanted):
        return False
    return seen.hashes(folder, wanted) == wanted


def check_replaceable(folder: Path) -> None:
    """Raise :class:`OutputError` where something lies there that is no export."""
    if folder.is_symlink() or (folder.exists() and not (folder / MANIFEST).is_file()):
        raise OutputError(f"{folder} exists and is no export of md-export; remove it, or name another folder with -o")


def place(cache: Cache, entries: Iterable[Entry], folder: Path, work: Path) -> None:
    """Copy all files of the entries to ``folder``; what lay there goes when the new files are complete.

    Args:
        work: a folder on the same disk, to copy to first.

    Raises:
        ArtifactError: a file of the cache is not what it was.
        OutputError: something lies there that is no export.
    """
    made = work / folder.name
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir()
    for entry in entries:
        for name, file in entry.files.items():
            _copy(cache.files(entry.key) / name, made / name, file.sha256)
    _swap(made, folder)
    to_disk(folder.parent)


def _swap(made: Path, folder: Path) -> None:
    """Give ``made`` the name ``folder``. Another build may do the same at any moment: the last one stays."""
    old = made.with_name(f"{made.name}.replaced")
    for attempt in range(_ATTEMPTS):
        check_replaceable(folder)
        try:
            if folder.exists():
                folder.rename(old)
            made.rename(folder)
            break
        except OSError:
            if attempt == _ATTEMPTS - 1:
                raise
        finally:
            shutil.rmtree(old, ignore_errors=True)


def _copy(source: Path, destination: Path, sha256: str) -> None:
    """Bring a copy to the disk, and hold what was copied against its hash."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with source.open("rb") as given, destination.open("xb") as made:
        while chunk := given.read(_CHUNK):
            digest.update(chunk)
            made.write(chunk)
    to_disk(destination)
    if digest.hexdigest() != sha256:
        raise ArtifactError(f"{source} of the cache was altered; run the same command again")
