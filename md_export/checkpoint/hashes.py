"""Hashes over the files of a checkpoint that an artifact depends on.

Files are named by their path in the checkpoint, those that a sibling inherits with ``parent/`` before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from md_export.checkpoint.files import unreadable
from md_export.spec.loras import Lora
from md_export.system.files import sha256_of, sha256_of_text

INHERITED: Final = "parent/"


def hash_of_file(file: Path) -> str:
    """Return the SHA-256 of a file's content; CheckpointError where it cannot be read."""
    try:
        return sha256_of(file)
    except OSError as error:
        unreadable(file, error)


def hash_of_files(files: Mapping[str, str]) -> str:
    """Return the SHA-256 over names and contents of files, given the SHA-256 of each by its name."""
    return sha256_of_text("".join(f"{name}\0{digest}\n" for name, digest in sorted(files.items())))


def hash_of_folder(files: Mapping[str, str], folder: str) -> str:
    """Return the SHA-256 over weights and config of the component in ``folder``, given those of all files.

    The same for a sibling that inherits all of them as for its parent.
    """
    own = {name: digest for name, digest in files.items() if name.removeprefix(INHERITED).startswith(f"{folder}/")}
    # A sibling may hold some tensors in a file of the same name as the parent's, which it is read over.
    plain = {name: name.removeprefix(INHERITED) for name in own}
    if len(set(plain.values())) == len(plain):
        own = {plain[name]: digest for name, digest in own.items()}
    return hash_of_files(own)


def hashes_of_loras(folder: str, loras: Sequence[Lora]) -> dict[str, str]:
    """Return the SHA-256 of each LoRA of the component in ``folder``, by a name that holds its place and scale."""
    return {f"{folder}/lora {place} at {lora.factor!r}": hash_of_file(lora.path) for place, lora in enumerate(loras)}
