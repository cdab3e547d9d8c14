"""What an artifact was made of: hashes over those files of a checkpoint that have a part in it.

Files are named by their path in the checkpoint, those that a sibling inherits with ``parent/`` before it.
"""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from md_export.checkpoint.files import Layout, read_json, unreadable
from md_export.checkpoint.lora.source import base_of
from md_export.errors import CheckpointError
from md_export.spec.loras import Lora

INHERITED: Final = "parent/"


def hash_of_file(file: Path) -> str:
    """SHA-256 of its content; CheckpointError where it cannot be read."""
    try:
        with file.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        unreadable(file, error)


def hash_of_files(files: Mapping[str, str]) -> str:
    """SHA-256 over names and contents of some files, given the SHA-256 of each by its name."""
    lines = "".join(f"{name}\0{digest}\n" for name, digest in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def hash_of_folder(files: Mapping[str, str], folder: str) -> str:
    """SHA-256 over weights and config of the component in ``folder``, given those of all files of the checkpoint.

    The same for a sibling that inherits all of them as for its parent.
    """
    own = {name: digest for name, digest in files.items() if name.removeprefix(INHERITED).startswith(f"{folder}/")}
    # A sibling may hold some tensors in a file of the same name as the parent's, which it is read over.
    plain = {name: name.removeprefix(INHERITED) for name in own}
    if len(set(plain.values())) == len(plain):
        own = {plain[name]: digest for name, digest in own.items()}
    return hash_of_files(own)


def hashes_of_loras(folder: str, loras: Sequence[Lora]) -> dict[str, str]:
    """SHA-256 of the LoRAs of the component in ``folder``; names say place and scale, which both have a part in it."""
    return {f"{folder}/lora {place} at {lora.factor!r}": hash_of_file(lora.path) for place, lora in enumerate(loras)}


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
