"""Which folders a checkpoint is made of: its own, the parent that it inherits from, the base that it adds LoRAs to."""

from __future__ import annotations

import stat
from pathlib import Path

from md_export.checkpoint.files import Layout, read_json, unreadable
from md_export.checkpoint.lora.source import base_of
from md_export.errors import CheckpointError


def open_layout(path: Path) -> Layout:
    """Find the folder and, through ``sibling.json``, its parent; through ``loras.json``, those of its base."""
    try:
        is_folder = stat.S_ISDIR(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(f"{path} does not exist: give the folder of a checkpoint") from None
    except OSError as error:
        unreadable(path, error)
    if not is_folder:
        also = f", or make one of it with: md-export unpack {path} --tokenizer DIR -o DIR" if _is_single(path) else ""
        raise CheckpointError(
            f"{path} is a file: give the checkpoint folder that holds unet/, vae/ and text_encoder/{also}"
        )
    path = base_of(path) or path
    note = path / "sibling.json"
    if not note.is_file():
        return Layout(path)
    given = read_json(note).get("parent")
    if not isinstance(given, str) or not given or Path(given).is_absolute():
        raise CheckpointError(f'{note} must say "parent": a path relative to its folder, such as "../.."')
    parent = (path / given).resolve()
    if not parent.is_dir() or parent == path.resolve():
        raise CheckpointError(f"{note} names the parent {given!r}, which is no other folder: correct the path")
    if (parent / "sibling.json").is_file():
        raise CheckpointError(f"{note} names the parent {given!r}, itself a sibling: name that one's parent instead")
    return Layout(path, parent)


def _is_single(path: Path) -> bool:
    """Whether all of a model may be in the file, as Stable Diffusion's authors publish it."""
    return path.suffix == ".safetensors"
