"""The checkpoint and the golden cases that were given, as entries: so they reach machines that lack their paths."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from md_export.errors import ArtifactError
from md_export.matrix.entry import SCHEMA, Entry, StoredFile
from md_export.matrix.keys import key_of
from md_export.matrix.loras import lora_places
from md_export.matrix.opening import READ, parents
from md_export.matrix.request import BuildRequest
from md_export.matrix.seen import Seen, files_in

_INDEX: Final = "index.json"


@dataclass(frozen=True)
class Input:
    """A folder of the request.

    Attributes:
        entry: all of its files, and those of the folder that it inherits from, by their paths in ``root``.
        within: the folder's own path in ``root``.
    """

    entry: Entry
    root: Path
    within: str


def inputs_of(request: BuildRequest, seen: Seen) -> dict[str, Input]:
    """By the name that steps know them by; files that were read before are not read again.

    Raises:
        ArtifactError: a file went away.
    """
    checkpoint = request.checkpoint.resolve()
    folders = [checkpoint, *(parent.resolve() for parent in parents(checkpoint))]
    root = Path(os.path.commonpath(folders))
    names = [_within(root, folder, name) for folder in folders for name in files_in(folder, READ)]
    found = {"checkpoint": _input("checkpoint", root, names, _within(root, checkpoint), seen)}
    if request.golden is not None:
        golden = request.golden.resolve()
        found["given"] = _input("golden cases", golden, [_INDEX, *_cases(golden)], "", seen)
    for name, file in lora_places(request.recipes).items():
        found[name] = _input(f"LoRA {file.name}", file.absolute().parent, [file.name], file.name, seen)
    return found


def _input(label: str, root: Path, names: Iterable[str], within: str, seen: Seen) -> Input:
    files = {}
    for name, digest in seen.hashes(root, sorted(set(names))).items():
        if digest is None:
            raise ArtifactError(f"{root / name} went away; run the same command again")
        files[name] = StoredFile((root / name).stat().st_size, digest)
    key = key_of({"input": {name: file.sha256 for name, file in files.items()}})
    return Input(Entry(SCHEMA, key, "input", label, files, {}), root, within)


def _cases(golden: Path) -> list[str]:
    """Files that the index names; planning has read it by now."""
    return [str(case["file"]) for case in json.loads((golden / _INDEX).read_text(encoding="utf-8"))["cases"]]


def _within(root: Path, folder: Path, name: str = "") -> str:
    return (folder / name).relative_to(root).as_posix()
