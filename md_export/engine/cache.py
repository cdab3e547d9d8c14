"""Cache of step results. A key covers everything that a result depends on.

An entry appears whole or not at all, and is checked when it is read.

<root>/entries/<key>/entry.json     kind and label, the hash of each file, and the step's result
                     files/…
<root>/work/                        entries that are being written
<root>/plans, seen, measured/       stored plans, file hashes and costs; losing them costs only time
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import ConfigDict, Field, TypeAdapter

from md_export.engine.keys import files_in
from md_export.engine.plan import ArtifactResult, Result
from md_export.errors import ArtifactError, OutputError
from md_export.system.files import is_plain_name, sha256_of, sha256_of_text, to_disk
from md_export.system.workspace import is_in_use

SCHEMA: Final = 2


@dataclass(frozen=True)
class StoredFile:
    """One file of an entry."""

    bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True)
class Entry:
    """Record of a cached step: its files and its result.

    Attributes:
        kind, label: kind and label of the step.
        files: the entry's files, by path in the entry.
        result: result of the step; None if the entry is an input of a build.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    schema: Literal[2]
    key: str
    kind: str
    label: str
    files: dict[str, StoredFile]
    result: Result | None = None

    @property
    def bytes(self) -> int:
        """Total size of the files in bytes."""
        return sum(file.bytes for file in self.files.values())


@dataclass(frozen=True)
class Listed:
    """An entry and the time of its last use, in seconds since 1970."""

    entry: Entry
    used: float


_ENTRY: Final = TypeAdapter(Entry)


_WRAPPED: Final = TypeAdapter(dict[str, str])


def entry_to_json(entry: Entry) -> str:
    """Serialize an entry to a JSON record that includes the record's SHA-256."""
    text = _ENTRY.dump_json(entry).decode()
    return json.dumps({"sha256": sha256_of_text(text), "entry": text})


def entry_from_json(record: str) -> Entry:
    """Parse the output of :func:`entry_to_json`.

    Raises:
        ValueError, KeyError, TypeError, RecursionError: the record is damaged or is something else.
    """
    # Not the json module: it overflows the stack on deep nesting if a library has raised the recursion limit.
    values = _WRAPPED.validate_json(record)
    if sha256_of_text(values["entry"]) != values["sha256"]:
        raise ValueError("the record was altered")
    entry = _ENTRY.validate_json(values["entry"], strict=True)
    if not all(map(_is_inside, entry.files)):
        raise ValueError("a file lies outside the entry")
    return entry


def stored(folder: Path, known: Mapping[str, str]) -> dict[str, StoredFile]:
    """Make all files in ``folder`` read-only, flush them to disk and return their sizes and hashes.

    ``known``: SHA-256 of files that need not be read again, by path in the folder.

    Raises:
        OutputError: a file name is not allowed.
    """
    names = files_in(folder, [one.name for one in folder.iterdir()])
    found = {}
    for name in names:
        if not _is_inside(name):
            raise OutputError(f"a step wrote a file with the name {name!r:.80}, which is not allowed")
        path = folder / name
        path.chmod(0o555 if path.stat().st_mode & 0o100 else 0o444)
        to_disk(path)
        found[name] = StoredFile(path.stat().st_size, known.get(name) or sha256_of(path))
    return found


def _is_inside(name: str) -> bool:
    return all(is_plain_name(part) for part in name.split("/"))


def _hashed(result: Result | None) -> dict[str, str]:
    """Return the hash of an artifact that is a single file, which its worker has just computed."""
    if not isinstance(result, ArtifactResult) or result.entry.data:
        return {}
    return {result.entry.file: result.entry.sha256}


_RECORD: Final = "entry.json"
_FILES: Final = "files"
Tell = Callable[[str], None]


def default_root() -> Path:
    """Return ``$MD_EXPORT_CACHE`` if it is set, else ``md-export`` in the platform's cache folder."""
    if given := os.environ.get("MD_EXPORT_CACHE"):
        return Path(given)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "md-export"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "md-export"


class Cache:
    """Cache of entries in ``root``; any number of processes may use it at the same time."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.work = self.root / "work"
        self._entries = self.root / "entries"

    def files(self, key: str) -> Path:
        """Return the folder that holds an entry's files."""
        return self._entries / key / _FILES

    def read(self, key: str) -> Entry | None:
        """Return an entry's record without reading its files; None if it is missing or damaged."""
        try:
            entry = entry_from_json((self._entries / key / _RECORD).read_text(encoding="utf-8"))
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        return entry if entry.key == key else None

    def require(self, key: str) -> Entry:
        """Return an entry's record as :meth:`read` does; raise ArtifactError if it is missing or damaged."""
        entry = self.read(key)
        if entry is None:
            raise ArtifactError(f"the entry {key[:12]} of {self.root} is gone; run the same command again")
        return entry

    def get(self, key: str, tell: Tell = lambda _: None) -> Entry | None:
        """Return an entry after checking the hashes of all its files; None if it is missing or damaged.

        A damaged entry is removed and reported to ``tell``.
        """
        folder = self._entries / key
        if not folder.exists():
            return None
        entry = self.read(key)
        damage = "its record" if entry is None else self._damage(entry)
        if entry is None or damage:
            tell(f"cache: {entry.label if entry else key[:12]} is damaged ({damage}); it will be built again")
            self._take_away(key)
            return None
        with suppress(OSError):
            os.utime(folder / _RECORD)
        return entry

    def put(self, key: str, kind: str, label: str, folder: Path, result: Result | None) -> Entry:
        """Store the files in ``folder`` as an entry; an existing entry with the same key is kept instead.

        ``folder`` must be in :attr:`work` and is moved.

        Raises:
            OutputError: the cache could not be written.
        """
        made = folder.with_name(f"{folder.name}.entry")
        try:
            made.mkdir()
            folder.rename(made / _FILES)
            entry = Entry(SCHEMA, key, kind, label, stored(made / _FILES, _hashed(result)), result)
            (made / _RECORD).write_text(entry_to_json(entry), encoding="utf-8")
            to_disk(made / _RECORD)
            self._publish(made, key)
        except OSError as error:
            raise OutputError(
                f"the cache {self.root} cannot be written: {error.strerror}; free some space with: "
                "md-export cache prune, or set MD_EXPORT_CACHE to another folder"
            ) from error
        return entry

    def remove(self, key: str) -> None:
        """Remove an entry; it disappears for all processes at the same moment."""
        self._take_away(key)

    def _take_away(self, key: str) -> None:
        self.work.mkdir(parents=True, exist_ok=True)
        aside = self.work / f"removed-{key}-{os.getpid()}"
        with suppress(FileNotFoundError):
            (self._entries / key).rename(aside)
        shutil.rmtree(aside, ignore_errors=True)

    def list(self) -> Iterator[Listed]:
        """Yield all readable entries in arbitrary order."""
        for folder in self._entries.glob("*"):
            entry = self.read(folder.name)
            if entry is not None:
                yield Listed(entry, (folder / _RECORD).stat().st_mtime)

    def is_in_use(self) -> bool:
        """Return whether a running build uses the cache."""
        return self.work.is_dir() and is_in_use(self.work)

    def prune(self, before: float | None, keep_bytes: int | None) -> tuple[Listed, ...]:
        """Remove unreadable entries, entries last used before ``before``, and then the least recently used ones.

        Args:
            before: time in seconds since 1970; None: no limit by age.
            keep_bytes: size that the remaining entries may have together; None: no limit by size.

        Raises:
            OutputError: a running build uses the cache.
        """
        if self.is_in_use():
            raise OutputError(f"a build uses {self.root} now; prune it when the build has ended")
        for left in self.work.glob("removed-*"):
            shutil.rmtree(left, ignore_errors=True)
        for folder in self._entries.glob("*"):
            # The entry is damaged or was written by another version of md-export.
            if self.read(folder.name) is None:
                self.remove(folder.name)
        newest = sorted(self.list(), key=lambda one: one.used, reverse=True)
        removed, held = [], 0
        for one in newest:
            held += one.entry.bytes
            if (before is not None and one.used < before) or (keep_bytes is not None and held > keep_bytes):
                held -= one.entry.bytes
                self.remove(one.entry.key)
                removed.append(one)
        return tuple(removed)

    def _damage(self, entry: Entry) -> str:
        """Return the name of the first file that is missing or altered, or an empty string."""
        for name, file in entry.files.items():
            path = self.files(entry.key) / name
            try:
                if path.stat().st_size != file.bytes or sha256_of(path) != file.sha256:
                    return name
            except OSError:
                return name
        return ""

    def _publish(self, made: Path, key: str) -> None:
        self._entries.mkdir(parents=True, exist_ok=True)
        try:
            made.rename(self._entries / key)
        except OSError:
            # Another process published the same entry first; its content is equivalent.
            if self.read(key) is None:
                raise
        to_disk(self._entries)
