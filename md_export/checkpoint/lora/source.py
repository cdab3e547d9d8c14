"""Which LoRAs an adapted checkpoint has: ``loras.json`` in a folder of its own, that names the checkpoint."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Final

from pydantic_core import to_json

from md_export.checkpoint.files import read_json, shown
from md_export.errors import CheckpointError
from md_export.spec.loras import MOST_LORAS, SUFFIX, Lora, is_scale, parse_loras

NOTE: Final = "loras.json"
FOLDER: Final = "loras"


def _copy(there: Path, file: Path) -> None:
    shutil.copyfile(file, there)


@contextmanager
def adapted(checkpoint: Path, loras: Sequence[str]) -> Iterator[Path]:
    """The folder of a checkpoint with some LoRAs, each ``FILE`` or ``FILE:scale``, while it is needed.

    Raises:
        UsageError: as :func:`md_export.spec.loras.parse_loras`.
    """
    if not loras:
        yield checkpoint
        return
    with tempfile.TemporaryDirectory(prefix="md-export-") as scratch:
        write_adapted(Path(scratch), checkpoint, parse_loras(loras), Path.symlink_to)
        yield Path(scratch)


def write_adapted(
    folder: Path, checkpoint: Path, loras: Sequence[Lora], put: Callable[[Path, Path], object] = _copy
) -> None:
    """Make the empty ``folder`` an adapted checkpoint; ``put(there, file)`` brings each LoRA file to its place."""
    (folder / FOLDER).mkdir()
    entries = [{"name": lora.name, "file": f"{place}{SUFFIX}", "scale": lora.scale} for place, lora in enumerate(loras)]
    for entry, lora in zip(entries, loras, strict=True):
        put(folder / FOLDER / str(entry["file"]), lora.path.resolve())
    base = os.path.relpath(checkpoint.resolve(), folder.resolve())
    (folder / NOTE).write_bytes(to_json({"base": Path(base).as_posix(), "loras": entries}, indent=2) + b"\n")


def base_of(folder: Path) -> Path | None:
    """The checkpoint that ``folder`` adapts; None where it adapts none.

    Raises:
        CheckpointError: its note is damaged, or names no other folder.
    """
    note = folder / NOTE
    if not note.is_file():
        return None
    given = read_json(note).get("base")
    if not isinstance(given, str) or not given or Path(given).is_absolute():
        raise CheckpointError(f'{note} must say "base": a path relative to its folder, such as "../nano"')
    base = (folder / given).resolve()
    if not base.is_dir() or base == folder.resolve():
        raise CheckpointError(f"{note} names the base {shown(given)!r}, which is no other folder: correct the path")
    if (base / NOTE).is_file():
        raise CheckpointError(
            f"{note} names the base {shown(given)!r}, which has LoRAs itself: name its base, and all LoRAs together"
        )
    return base


def loras_of(folder: Path) -> tuple[Lora, ...]:
    """The LoRAs of an adapted checkpoint; none of any other.

    Raises:
        CheckpointError: its note is damaged, or names files outside the folder.
    """
    note = folder / NOTE
    if not note.is_file():
        return ()
    entries = read_json(note).get("loras")
    if not isinstance(entries, list) or not 0 < len(entries) <= MOST_LORAS:
        raise CheckpointError(f'{note} must say "loras": a list of 1 to {MOST_LORAS} files; write it again')
    return tuple(_lora(folder, entry) for entry in entries)


def _lora(folder: Path, entry: Any) -> Lora:
    note = folder / NOTE
    values = [entry.get(field) for field in ("name", "file", "scale")] if isinstance(entry, dict) else [None] * 3
    name, file, scale = values
    if not isinstance(name, str) or not isinstance(file, str) or not isinstance(scale, (int, float, type(None))):
        raise CheckpointError(f'{note}: each of "loras" needs "name", "file" and perhaps "scale"; write it again')
    if PurePosixPath(file).name != file or "\\" in file or not file.endswith(SUFFIX):
        raise CheckpointError(f"{note} names {shown(file)!r}, which is no {SUFFIX} file in {FOLDER}/: refused")
    path = folder / FOLDER / file
    if not path.is_file():
        raise CheckpointError(f"{path} is missing, though {NOTE} names it: copy it there")
    if not is_scale(scale):
        raise CheckpointError(f"{note}: {scale!r:.20} is no scale; write it again")
    return Lora(path, shown(name), None if scale is None else float(scale))
