"""One entry of the cache: what is known about it, and its record."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import ConfigDict, Field, TypeAdapter

from md_export.errors import OutputError
from md_export.files import is_plain_name, sha256_of, sha256_of_text
from md_export.matrix.seen import files_in
from md_export.matrix.writing import to_disk

SCHEMA: Final = 1


@dataclass(frozen=True)
class StoredFile:
    """One file of an entry."""

    bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True)
class Entry:
    """What a step left behind.

    Attributes:
        kind, label: of the step.
        files: by path in the entry.
        value: plain data: the artifact's entry of the manifest, for one.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    schema: Literal[1]
    key: str
    kind: str
    label: str
    files: dict[str, StoredFile]
    value: dict[str, Any]

    @property
    def bytes(self) -> int:
        """Of all files together."""
        return sum(file.bytes for file in self.files.values())


@dataclass(frozen=True)
class Listed:
    """One line of a list: the entry, and when it was last used, in seconds since 1970."""

    entry: Entry
    used: float


_ENTRY: Final = TypeAdapter(Entry)


def entry_to_json(entry: Entry) -> str:
    """The record of an entry, with a hash of itself."""
    text = _ENTRY.dump_json(entry).decode()
    return json.dumps({"sha256": sha256_of_text(text), "entry": text})


def entry_from_json(record: str) -> Entry:
    """Read what :func:`entry_to_json` wrote; ValueError, KeyError, TypeError or RecursionError for anything else."""
    values = json.loads(record)
    if sha256_of_text(values["entry"]) != values["sha256"]:
        raise ValueError("the record was altered")
    entry = _ENTRY.validate_json(values["entry"], strict=True)
    if not all(map(_is_inside, entry.files)):
        raise ValueError("a file lies outside the entry")
    return entry


def stored(folder: Path) -> dict[str, StoredFile]:
    """Hashes of all files, which are brought to the disk and protected from slips."""
    names = files_in(folder, [one.name for one in folder.iterdir()])
    found = {}
    for name in names:
        if not _is_inside(name):
            raise OutputError(f"a step wrote a file of the name {name!r:.80}")
        path = folder / name
        path.chmod(0o444)
        to_disk(path)
        found[name] = StoredFile(path.stat().st_size, sha256_of(path))
    return found


def _is_inside(name: str) -> bool:
    return all(is_plain_name(part) for part in name.split("/"))
