"""Measurements as they are made, one line of JSON a module, so that a search that was stopped goes on where it was.

A line is on the disk before the next measurement counts. One that was being written when the process died is dropped.
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Final, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from md_export.engine.search.choice import Module
from md_export.errors import ArtifactError, OutputError, RecipeError

_FORBID = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
# Full-size: some hundred modules of a thousand bytes.
_LARGEST_FILE: Final = 64 << 20


@dataclass(frozen=True)
class Key:
    """All that measurements depend on: those of another key are of no use.

    Attributes:
        forms: labels of the forms that are measured.
        rewrites: as the recipe names them.
        calibration: sha256 of the cases that are measured on.
        versions: of md-export and the libraries that compute.
    """

    __pydantic_config__ = _FORBID

    checkpoint: str
    target: str
    components: tuple[str, ...]
    forms: tuple[str, ...]
    rewrites: tuple[str, ...]
    rounding: str
    calibration: str
    versions: dict[str, str]


@dataclass(frozen=True)
class _Head:
    __pydantic_config__ = _FORBID

    journal: Literal["md-export search"]
    schema: Literal[1]
    key: Key


_HEAD: Final = TypeAdapter(_Head)
_MODULE: Final = TypeAdapter(Module)


class Journal:
    """An open journal; see :func:`open_journal`."""

    def __init__(self, path: Path, stream: FileIO, found: dict[tuple[str, str], Module]) -> None:
        self.path = path
        self.found = found
        self._stream = stream

    def append(self, measured: Module) -> None:
        """Write down for good what was measured of one module.

        Raises:
            OutputError: the disk is full, say.
        """
        _write(self.path, self._stream, _MODULE.dump_json(measured))
        self.found[measured.key] = measured


@contextmanager
def open_journal(path: Path, key: Key) -> Iterator[Journal]:
    """Open ``path`` for measurements of this key, with those that are there already.

    Raises:
        ArtifactError: it is no journal, was damaged, is of another key, or is open in another process.
        OutputError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Unbuffered: what a full disk did not take is not tried again when the file is closed.
        stream = path.open("a+b", buffering=0)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}; choose another place with -o") from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ArtifactError(f"{path} is open in another search; wait for it, or choose another place") from error
        yield Journal(path, stream, _read(path, stream, key))


def _read(path: Path, stream: FileIO, key: Key) -> dict[tuple[str, str], Module]:
    """What the journal holds; afterwards it ends with a whole line, the head at least."""
    if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        raise ArtifactError(f"{path} is no regular file; name another place for the journal")
    if stream.seek(0, os.SEEK_END) > _LARGEST_FILE:
        raise ArtifactError(f"{path} is larger than {_LARGEST_FILE} bytes; this is no journal of a search")
    stream.seek(0)
    content = stream.read()
    whole = content.rfind(b"\n") + 1
    head = _HEAD.dump_json(_Head("md-export search", 1, key))
    if not whole and not (head + b"\n").startswith(content):
        raise ArtifactError(f"{path} is no journal of a search; remove it, or choose another place")
    lines = content[:whole].splitlines()
    if lines:
        _check_head(path, lines[0], key)
    found: dict[tuple[str, str], Module] = {}
    for number, line in enumerate(lines[1:], start=2):
        one = _measurement(path, number, line)
        if found.setdefault(one.key, one) != one:
            raise ArtifactError(f"{path}, line {number}: measured before, with another result; {_ANEW}")
    stream.truncate(whole)
    if not lines:
        _write(path, stream, head)
    return found


_ANEW: Final = "remove the file to measure anew"


def _check_head(path: Path, line: bytes, key: Key) -> None:
    try:
        found = _HEAD.validate_json(line).key
    except (ValidationError, RecursionError) as error:
        raise ArtifactError(f"{path} is no journal of this version's searches; {_ANEW}") from error
    fields = [field.name for field in dataclasses.fields(Key)]
    differing = [name for name in fields if getattr(found, name) != getattr(key, name)]
    if differing:
        what = "; ".join(
            f"{name} {_short(getattr(found, name))}, not {_short(getattr(key, name))}" for name in differing
        )
        raise ArtifactError(f"{path} is of another search: {what}. Search with the same, or {_ANEW}")


def _measurement(path: Path, number: int, line: bytes) -> Module:
    try:
        return _MODULE.validate_json(line)
    except (ValidationError, RecipeError, RecursionError) as error:
        raise ArtifactError(f"{path}, line {number}: no measurement of a search; {_ANEW}") from error


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


def _write(path: Path, stream: FileIO, line: bytes) -> None:
    try:
        if stream.write(line + b"\n") <= len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(stream.fileno())
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written: {error.strerror}; what was measured before is kept, so make room and run the "
            "same command again"
        ) from error
