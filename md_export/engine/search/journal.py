"""Journal of measurements, one line of JSON per module, from which an interrupted search resumes.

Each line is flushed to disk before the next measurement is recorded. A line that is incomplete because the process died
is dropped.
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
# A full-size checkpoint needs some hundred lines of about a thousand bytes.
_LARGEST_FILE: Final = 64 << 20


@dataclass(frozen=True)
class Key:
    """Everything that measurements depend on; measurements with another key cannot be used.

    Attributes:
        checkpoint: SHA-256 of the checkpoint.
        forms: labels of the measured forms.
        rewrites: names of the rewrites in the recipe.
        calibration: SHA-256 of the index of the cases that are measured on.
        versions: versions of md-export and of the libraries that compute.
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
        """Write the measurement of one module to disk.

        Raises:
            OutputError: the journal cannot be written, for example because the disk is full.
        """
        _write(self.path, self._stream, _MODULE.dump_json(measured))
        self.found[measured.key] = measured


@contextmanager
def open_journal(path: Path, key: Key) -> Iterator[Journal]:
    """Open or create the journal ``path`` for measurements with this key, and read its existing measurements.

    Raises:
        ArtifactError: the file is not a journal, is damaged, has another key, or is open in another process.
        OutputError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Unbuffered, so that data rejected by a full disk is not written again when the file is closed.
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
    """Return the journal's measurements, and truncate it to complete lines; writes the head line if it is missing.

    Raises:
        ArtifactError: the file is not a journal, is damaged, or has another key.
        OutputError: the head line cannot be written.
    """
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
