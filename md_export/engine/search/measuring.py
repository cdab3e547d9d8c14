"""Measurements on the available workers, kept in a journal from which an interrupted search resumes.

The journal has one line of JSON per measurement: the samples of one direction, or one pass. Each line is flushed to
disk before the next measurement is recorded. An incomplete line, which a killed process leaves, is dropped.
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
import math
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Final, Generic, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import to_json

from md_export.engine.search.measurements import Pass, Sample
from md_export.engine.search.spread import Request, Workers, spread
from md_export.errors import ArtifactError, OutputError, RecipeError, RuntimeFault
from md_export.system.terminal_text import spelled_time

_FORBID = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
# A full-size checkpoint needs some ten lines of a hundred thousand bytes.
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
    schema: Literal[2]
    key: Key


_HEAD: Final = TypeAdapter(_Head)
Line = Sample | Pass
Name = tuple[str, ...]
_LINES: Final[Mapping[type, TypeAdapter[Line]]] = {Sample: TypeAdapter(Sample), Pass: TypeAdapter(Pass)}
_LINE: Final[TypeAdapter[Line]] = TypeAdapter(Line)


class Journal:
    """An open journal; see :func:`open_journal`."""

    def __init__(self, path: Path, stream: FileIO, found: dict[Name, Line]) -> None:
        self.path = path
        self.found = found
        self._stream = stream

    def append(self, measured: Line) -> None:
        """Write one measurement to disk.

        Raises:
            OutputError: the journal cannot be written, for example because the disk is full.
        """
        _write(self.path, self._stream, _LINE.dump_json(measured))
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


def _read(path: Path, stream: FileIO, key: Key) -> dict[Name, Line]:
    """Return the journal's measurements, and truncate it to complete lines; writes the head line if it is missing.

    Raises:
        ArtifactError: the file is not a journal, is damaged, or has another key.
        OutputError: the head line cannot be written.
    """
    if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        raise ArtifactError(f"{path} is not a regular file; name another place for the journal")
    if stream.seek(0, os.SEEK_END) > _LARGEST_FILE:
        raise ArtifactError(f"{path} is larger than {_LARGEST_FILE} bytes; this is no journal of a search")
    stream.seek(0)
    content = stream.read()
    whole = content.rfind(b"\n") + 1
    head = _HEAD.dump_json(_Head("md-export search", 2, key))
    if not whole and not (head + b"\n").startswith(content):
        raise ArtifactError(f"{path} is no journal of a search; remove it, or choose another place")
    lines = content[:whole].splitlines()
    if lines:
        _check_head(path, lines[0], key)
    found: dict[Name, Line] = {}
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


def _measurement(path: Path, number: int, line: bytes) -> Line:
    try:
        return _LINE.validate_json(line)
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


# Progress callback: number of measurements that are done, number of all, and the remaining time in words.
Count = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Job(Generic[Request]):
    """One measurement.

    Attributes:
        name: key of its line in the journal.
        kind: jobs of a kind are expected to take the same time.
        request: argument of the measuring function, which returns the line.
    """

    name: Name
    kind: str
    request: Request


def measure_all(
    jobs: Sequence[Job[Request]],
    measure: Callable[[Request], Line],
    found: Workers,
    journal: Journal,
    count: Count = lambda *_: None,
) -> tuple[Line, ...]:
    """Take the measurements that are not in the journal, and return all in the order of the jobs.

    Raises:
        RuntimeFault: a worker died or failed, or returned an invalid result; the journal keeps all earlier results.
        MdExportError: the error that ``measure`` raised.
    """
    missing = [job for job in jobs if job.name not in journal.found]
    left = TimeLeft((job.kind for job in missing), found.count)
    done, total = len(jobs) - len(missing), len(jobs)
    count(done, total, left.text)
    try:
        for answer in spread(measure, [job.request for job in missing], found):
            job = missing[answer.index]
            journal.append(_line(job, answer.value))
            left.finish(job.kind, answer.seconds)
            done += 1
            count(done, total, left.text)
    except RuntimeFault as error:
        raise RuntimeFault(f"{error} ({done} of {total} measurements are kept in {journal.path})") from error
    return tuple(journal.found[job.name] for job in jobs)


def _line(job: Job[Request], answer: Line) -> Line:
    name = " ".join(job.name)
    try:
        # A worker can be on another machine, so its answer is validated.
        line = _LINES[type(answer)].validate_json(to_json(answer))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RuntimeFault(f"{name}: no measurement: {where}: {first['msg']}") from error
    if line.key != job.name:
        raise RuntimeFault(f"{name}: a worker measured {' '.join(line.key)} instead")
    return line


class TimeLeft:
    """Estimate of the remaining time from the mean time of measurements of the same kind, or else of all kinds."""

    def __init__(self, kinds: Iterable[str], at_a_time: int) -> None:
        self._left = Counter(kinds)
        self._at_a_time = at_a_time
        self._spent: dict[str, list[float]] = {}

    def finish(self, kind: str, seconds: float) -> None:
        """Record the time of one measurement of a kind, in seconds."""
        self._left[kind] -= 1
        self._spent.setdefault(kind, []).append(seconds)

    @property
    def seconds(self) -> float | None:
        """Estimated remaining time in seconds; None before the first measurement."""
        every = [seconds for spent in self._spent.values() for seconds in spent]
        if not every:
            return None
        means = {kind: math.fsum(spent) / len(spent) for kind, spent in self._spent.items()}
        overall = math.fsum(every) / len(every)
        work = math.fsum(count * means.get(kind, overall) for kind, count in self._left.items())
        busy = min(self._at_a_time, max(1, self._left.total()))
        return work / busy

    @property
    def text(self) -> str:
        """Remaining time in words, for a progress line."""
        seconds = self.seconds
        if not self._left.total():
            return "all measured"
        return "time left not known yet" if seconds is None else f"about {spelled_time(seconds)} left"
