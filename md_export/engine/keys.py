"""Compute cache keys: the SHA-256 of everything that a step's result depends on."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Final

from pydantic_core import from_json

from md_export import __version__
from md_export.system.files import sha256_of, sha256_of_text, write_whole

_PACKAGE: Final = Path(__file__).parent.parent
# Code that does not affect results. The cache's file layout is versioned by the schema number of its records.
_APART: Final = ("api/", "cli/", "report/", "diagnose/", "engine/search/", "_data/")


def key_of(content: Mapping[str, object]) -> str:
    """Return the SHA-256 of JSON-serializable data; the order of dictionary keys does not matter."""
    return sha256_of_text(json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False))


def maker() -> dict[str, str]:
    """Return the versions that affect results here: md-export, a hash of its code, Python and the processor type.

    The hash of the code is included because a checkout can change without a new version number.
    """
    return {
        "md-export": __version__,
        "code": code_sha256(),
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


@cache
def code_sha256() -> str:
    """Return the SHA-256 of the files of this package that affect results."""
    digest = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*")):
        name = path.relative_to(_PACKAGE)
        if path.suffix in (".py", ".toml", ".sh") and not name.as_posix().startswith(_APART):
            digest.update(f"{name.as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


# A file can change twice within one tick of the file system's clock, so hashes of younger files are not stored.
_YOUNG_NS: Final = 100_000_000

Stamp = list[int]


class FileHashes:
    """File hashes, stored in ``folder`` for reuse; losing or damaging the stored data costs only time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def hashes(self, root: Path, names: Iterable[str]) -> dict[str, str | None]:
        """Return the SHA-256 of each named file, by path relative to ``root``; None for a file that does not exist."""
        memory = self._memory(root)
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

    def known(self, path: Path) -> str | None:
        """Return the stored SHA-256 of a file that has not changed since, or None."""
        stamp = _stamp(path)
        for root in path.parents:
            known = _read(self._memory(root)).get(path.relative_to(root).as_posix())
            if known and known[0] == stamp:
                return known[1]
        return None

    def _memory(self, root: Path) -> Path:
        return self._folder / f"{sha256_of_text(str(root.absolute()))[:32]}.json"


def files_in(root: Path, within: Iterable[str]) -> list[str]:
    """Return the sorted relative paths of all files in ``root`` that are, or are inside, one of ``within``.

    Symbolic links to folders are followed only at the top level.
    """
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
        values = from_json(memory.read_text(encoding="utf-8"))
        return {name: (list(map(int, stamp)), str(digest)) for name, (stamp, digest) in values.items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}
