"""SHA-256 of files that need not be read again: remembered by path, size, times and inode, as git's index does.

What this takes for granted: whoever writes to a file changes its modification time, its change time, its size or its
inode, and the file system tells times apart that are a tenth of a second from each other.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from md_export.files import sha256_of, sha256_of_text
from md_export.matrix.writing import write_whole

# A file may change again within a tick of the file system's clock: what is younger is not remembered.
_YOUNG_NS: Final = 100_000_000

Stamp = list[int]


class Seen:
    """Hashes of files, remembered in ``folder``; a memory that is lost or damaged costs time and nothing else."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def hashes(self, root: Path, names: Iterable[str]) -> dict[str, str | None]:
        """SHA-256 of each file in ``root``, by its path there; None where there is no such file."""
        memory = self._folder / f"{sha256_of_text(str(root.absolute()))[:32]}.json"
        known, kept, found = _read(memory), dict[str, tuple[Stamp, str]](), dict[str, str | None]()
        for name in names:
            path, now = root / name, time.time_ns()
            stamp = _stamp(path)
            if stamp is None:
                found[name] = None
                continue
            remembered = known.get(name)
            digest = remembered[1] if remembered and remembered[0] == stamp else sha256_of(path)
            found[name] = digest
            if max(stamp[1:3]) < now - _YOUNG_NS:
                kept[name] = (stamp, digest)
        if kept != known:
            write_whole(memory, json.dumps(kept), keep_going=True)
        return found


def files_in(root: Path, within: Iterable[str]) -> list[str]:
    """Paths of all files of ``root`` that lie in, or are, one of ``within``; sorted. Links to folders are followed at
    the top only."""
    found = []
    for name in within:
        path = root / name
        if path.is_file():
            found.append(name)
        for folder, _, files in os.walk(path):
            found += [(Path(folder) / file).relative_to(root).as_posix() for file in files]
    return sorted(found)


def _stamp(path: Path) -> Stamp | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev]


def _read(memory: Path) -> Mapping[str, tuple[Stamp, str]]:
    try:
        values = json.loads(memory.read_text(encoding="utf-8"))
        return {name: (list(map(int, stamp)), str(digest)) for name, (stamp, digest) in values.items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}
