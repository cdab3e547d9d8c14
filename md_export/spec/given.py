"""Checks of the paths that users name, before anything that takes long is imported.

Whoever reads such a path calls the same function, so each mistake has one message.
"""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Final

from md_export.errors import ArtifactError, CheckpointError, GoldenError, OutputError

# File that makes a folder an export; one that holds the functions of several; golden cases.
MANIFEST: Final = "manifest.json"
JOIN: Final = "join.json"
GOLDEN_INDEX: Final = "index.json"
# A checkpoint has one of these at least; the notes are those of checkpoint/derived.py.
_OF_CHECKPOINTS: Final = (
    *("model_index.json", "sibling.json", "loras.json"),
    *("text_encoder", "text_encoder_2", "tokenizer", "unet", "transformer", "vae", "scheduler"),
    *("decoder", "prior"),  # other families have these; checkpoint/recognize.py names the family
)
CHECKPOINT_FOLDERS: Final = "text_encoder/, tokenizer/, unet/, vae/ and scheduler/"


def require_checkpoint(path: Path) -> None:
    """Raise CheckpointError where ``path`` is no folder, or holds nothing that a checkpoint has."""
    try:
        is_folder = stat.S_ISDIR(path.stat().st_mode)
        is_checkpoint = is_folder and any((path / name).exists() for name in _OF_CHECKPOINTS)
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(f"{path} does not exist: give the folder of a checkpoint") from None
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read ({error.strerror}): check the path and its permissions"
        ) from error
    if not is_folder:
        # All of a model may be in the file, as Stable Diffusion's authors publish it.
        single = path.suffix in (".safetensors", ".ckpt")
        also = f", or make one of it with: md-export unpack {path} --tokenizer DIR -o DIR" if single else ""
        raise CheckpointError(
            f"{path} is a file: give the checkpoint folder that holds unet/, vae/ and text_encoder/{also}"
        )
    if not is_checkpoint:
        raise CheckpointError(
            f"{path} is no checkpoint: give a diffusers-style checkpoint folder that holds {CHECKPOINT_FOLDERS}"
        )


def require_export(folder: Path) -> None:
    """Raise ArtifactError where ``folder`` holds no manifest of one export."""
    if (folder / MANIFEST).is_file():
        return
    if (folder / JOIN).is_file():
        raise ArtifactError(f"{folder} holds functions of several exports; take one out with: md-export split {folder}")
    raise ArtifactError(f"{folder} holds no {MANIFEST}; name a folder that md-export wrote")


def require_joined(folder: Path) -> None:
    """Raise ArtifactError where ``folder`` holds no joined export."""
    if not (folder / JOIN).is_file():
        raise ArtifactError(f"{folder} is not a joined export; make one with: md-export join")


def require_artifact(path: Path) -> None:
    """Raise ArtifactError where ``path`` does not exist."""
    if not path.exists():
        raise ArtifactError(f"{path} does not exist; name an artifact that md-export wrote")


def require_golden(folder: Path) -> None:
    """Raise GoldenError where ``folder`` holds no index of golden cases."""
    if not (folder / GOLDEN_INDEX).is_file():
        raise GoldenError(
            f"{folder} holds no {GOLDEN_INDEX}; make golden cases with: md-export golden CHECKPOINT -o {folder}"
        )


def require_folder_of(file: Path) -> None:
    """Raise OutputError where the folder that ``file`` is to be written in does not exist."""
    if not file.parent.is_dir():
        raise OutputError(f"{file.parent} does not exist; create it first")
