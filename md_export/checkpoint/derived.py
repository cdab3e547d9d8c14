"""Checkpoint folders that add files to another checkpoint; a JSON file names that one by a relative path.

``sibling.json`` names a parent; the folder stores only files that differ from it, or an adapter or a ControlNet.
``loras.json`` names a base and the LoRA files in ``loras/`` that are added to its weights.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Final

from pydantic_core import to_json

from md_export.checkpoint.files import Layout, read_json, shown
from md_export.checkpoint.weights import find_weights, weight_names
from md_export.errors import CheckpointError, UsageError
from md_export.spec.given import require_checkpoint
from md_export.spec.loras import MOST_LORAS, SUFFIX, Lora, is_scale, parse_loras
from md_export.system.workspace import scratch_folder

SIBLING_NOTE: Final = "sibling.json"
LORA_NOTE: Final = "loras.json"
# Marks a folder with random weights, for which the thresholds for trained weights are too high.
RANDOM_NOTE: Final = "random.json"
LORA_FOLDER: Final = "loras"
_CONFIG: Final = "config.json"
_CHAINED: Final = "which has LoRAs itself: name its base, and all LoRAs together"
_TITLES: Final[Mapping[str, str]] = {"t2i_adapter": "adapter", "controlnet": "ControlNet", "vae": "VAE"}


def open_layout(path: Path) -> Layout:
    """Return a checkpoint's folder with the parent that ``sibling.json`` names; with ``loras.json``, those of the base.

    Raises:
        CheckpointError: ``path`` is not a folder, or a file names no valid parent or base.
    """
    require_checkpoint(path)
    path = base_of(path) or path
    chained = "itself a sibling: name that one's parent instead"
    return Layout(path, _folder_named_in(path / SIBLING_NOTE, "parent", "../..", chained), replaced_in(path))


def replaced_in(folder: Path) -> tuple[str, ...]:
    """Return the subfolders of a sibling that inherit no files; raise CheckpointError if its JSON file is damaged."""
    note = folder / SIBLING_NOTE
    found = read_json(note).get("replaced", []) if note.is_file() else []
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise CheckpointError(f'{note}: "replaced" must be a list of subfolders, such as ["vae"]; write it again')
    return tuple(found)


def base_of(folder: Path) -> Path | None:
    """Return the checkpoint that ``folder`` adds LoRAs to; None if it has no ``loras.json``.

    Raises:
        CheckpointError: ``loras.json`` is damaged, or names no other folder.
    """
    return _folder_named_in(folder / LORA_NOTE, "base", "../nano", _CHAINED)


def _folder_named_in(note: Path, field: str, example: str, chained: str) -> Path | None:
    """Return the folder that ``note`` names, None if it does not exist; ``chained``: error if that one has it, too."""
    if not note.is_file():
        return None
    given = read_json(note).get(field)
    if not isinstance(given, str) or not given or Path(given).is_absolute():
        raise CheckpointError(f'{note} must say "{field}": a path relative to its folder, such as "{example}"')
    found, named = (note.parent / given).resolve(), f"{note} names the {field} {shown(given)!r}"
    if not found.is_dir() or found == note.parent.resolve():
        raise CheckpointError(f"{named}, which is not another folder: correct the path")
    if (found / note.name).is_file():
        raise CheckpointError(f"{named}, {chained}")
    return found


def loras_of(folder: Path) -> tuple[Lora, ...]:
    """Return the LoRAs that a folder adds to its base; empty if it has no ``loras.json``.

    Raises:
        CheckpointError: ``loras.json`` is damaged, or names files outside the folder.
    """
    note = folder / LORA_NOTE
    if not note.is_file():
        return ()
    entries = read_json(note).get("loras")
    if not isinstance(entries, list) or not 0 < len(entries) <= MOST_LORAS:
        raise CheckpointError(f'{note} must say "loras": a list of 1 to {MOST_LORAS} files; write it again')
    return tuple(_lora(folder, entry) for entry in entries)


def _lora(folder: Path, entry: object) -> Lora:
    note = folder / LORA_NOTE
    values = [entry.get(field) for field in ("name", "file", "scale")] if isinstance(entry, dict) else [None] * 3
    name, file, scale = values
    if not isinstance(name, str) or not isinstance(file, str) or not isinstance(scale, (int, float, type(None))):
        raise CheckpointError(f'{note}: each of "loras" needs "name", "file" and perhaps "scale"; write it again')
    path = _file_of_lora(folder, file, SUFFIX)
    if not is_scale(scale):
        raise CheckpointError(f"{note}: {scale!r:.20} is not a scale; write it again")
    config = entry.get("config") if isinstance(entry, dict) else None
    beside = None if config is None else _file_of_lora(folder, str(config), ".json")
    return Lora(path, shown(name), None if scale is None else float(scale), beside)


def _file_of_lora(folder: Path, name: str, suffix: str) -> Path:
    if PurePosixPath(name).name != name or "\\" in name or not name.endswith(suffix):
        raise CheckpointError(
            f"{folder / LORA_NOTE} names {shown(name)!r}, which is not a {suffix} file in {LORA_FOLDER}/: refused"
        )
    path = folder / LORA_FOLDER / name
    if not path.is_file():
        raise CheckpointError(f"{path} is missing, though {LORA_NOTE} names it: copy it there")
    return path


@contextmanager
def adapted(checkpoint: Path, loras: Sequence[str]) -> Iterator[Path]:
    """Yield a temporary folder with a checkpoint and LoRAs, each ``FILE`` or ``FILE:scale``.

    Raises:
        UsageError: as :func:`md_export.spec.loras.parse_loras`.
    """
    if not loras:
        yield checkpoint
        return
    with scratch_folder() as scratch:
        write_adapted(scratch, checkpoint, parse_loras(loras), Path.symlink_to)
        yield scratch


def _copy(target: Path, file: Path) -> None:
    shutil.copyfile(file, target)


def write_adapted(
    folder: Path, checkpoint: Path, loras: Sequence[Lora], put: Callable[[Path, Path], object] = _copy
) -> None:
    """Write a checkpoint with LoRAs into the empty ``folder``; ``put(target, file)`` copies or links each LoRA file.

    Raises:
        CheckpointError: ``checkpoint`` is not a checkpoint folder, or already has LoRAs.
    """
    if (checkpoint / LORA_NOTE).is_file():
        raise CheckpointError(f"{checkpoint}, {_CHAINED}")
    open_layout(checkpoint)
    (folder / LORA_FOLDER).mkdir()
    entries = []
    for place, lora in enumerate(loras):
        entry: dict[str, object] = {"name": lora.name, "file": f"{place}{SUFFIX}", "scale": lora.scale}
        put(folder / LORA_FOLDER / f"{place}{SUFFIX}", lora.path.resolve())
        if lora.config is not None:
            put(folder / LORA_FOLDER / f"{place}.json", lora.config.resolve())
            entry["config"] = f"{place}.json"
        entries.append(entry)
    _write_note(folder / LORA_NOTE, "base", checkpoint, {"loras": entries})


def write_with_component(folder: Path, checkpoint: Path, given: Path, component: str) -> None:
    """Write a checkpoint into the empty ``folder``: ``component``, and a reference to the files of ``checkpoint``.

    ``given`` has config.json and weights as diffusers' T2IAdapter, ControlNetModel, AutoencoderKL or AutoencoderTiny
    saves them; ``component`` is the folder for them: ``t2i_adapter``, ``controlnet`` or ``vae``.

    Raises:
        UsageError: ``given`` has no such model, or ``checkpoint`` also refers to another one.
    """
    weights = find_weights(given.resolve().parent, given.resolve().name)
    if weights is None or not (given / _CONFIG).is_file():
        raise UsageError(
            f"{given} holds no {_TITLES[component]}: {_CONFIG} and {weight_names(component)[0]} are needed"
        )
    for note in (SIBLING_NOTE, LORA_NOTE):
        if (checkpoint / note).is_file():
            raise UsageError(
                f"{checkpoint} only adds to another checkpoint ({note}): give the {_TITLES[component]} to that one, "
                "then LoRAs to the folder that this writes"
            )
    own = folder / component
    own.mkdir()
    for file in (given / _CONFIG, *weights.files, *([weights.index] if weights.index else [])):
        shutil.copyfile(file, own / file.name)
    _write_note(folder / SIBLING_NOTE, "parent", checkpoint, {"replaced": [component]} if component == "vae" else {})


def _write_note(note: Path, field: str, checkpoint: Path, more: Mapping[str, object]) -> None:
    path = Path(os.path.relpath(checkpoint.resolve(), note.parent.resolve())).as_posix()
    note.write_bytes(to_json({field: path, **more}, indent=2) + b"\n")
