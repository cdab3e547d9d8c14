"""The tokenizer's files, checked before transformers opens them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from md_export.checkpoint.files import CONFIG_LIMIT, TABLE_LIMIT, Layout, read_json, read_text, unreadable
from md_export.errors import CheckpointError

# Of CLIP's: 0.9 MB, 0.5 MB, 2.2 MB, below 1 KB each.
_LIMITS: Final[Mapping[str, int]] = {
    "vocab.json": TABLE_LIMIT,
    "merges.txt": TABLE_LIMIT,
    "tokenizer.json": TABLE_LIMIT,
    "tokenizer_config.json": CONFIG_LIMIT,
    "special_tokens_map.json": CONFIG_LIMIT,
    "added_tokens.json": CONFIG_LIMIT,
}
TOKENIZER_FILES: Final = tuple(_LIMITS)
# transformers hands these to constructors, or looks for code by them.
_FORBIDDEN: Final = ("init_inputs", "auto_map", "vocab_file", "merges_file", "tokenizer_object")
_TEMPLATES: Final = ("chat_template.jinja", "chat_templates")


def tokenizer_dir(layout: Layout) -> Path:
    """Return the sibling's tokenizer folder if it has one, else the parent's."""
    for folder in (tier / "tokenizer" for tier in reversed(layout.tiers)):
        if (folder / "tokenizer.json").is_file():
            return folder
        if folder.is_dir():
            if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
                return folder
            raise CheckpointError(f"{folder} holds no tokenizer: put vocab.json and merges.txt there")
    return layout.require("tokenizer/vocab.json").parent


def check_tokenizer(folder: Path) -> None:
    """Raise :class:`CheckpointError` for files that are too large, no JSON, links that lead elsewhere, or fields that
    transformers would pass on."""
    for name in _TEMPLATES:
        if (folder / name).exists() or (folder / name).is_symlink():
            raise CheckpointError(f"{folder / name} is for chat models, which nothing here is: remove it")
    for name, limit in _LIMITS.items():
        path = folder / name
        if path.is_symlink() or path.exists():
            _check_place(path)
            if not name.endswith(".json"):
                read_text(path, limit)
                continue
            values = read_json(path, limit)
            forbidden = [field for field in _FORBIDDEN if name == "tokenizer_config.json" and values.get(field)]
            if forbidden:
                raise CheckpointError(f"{path} has {', '.join(forbidden)}, which no CLIP tokenizer needs: remove it")


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy the tokenizer's files, and nothing else that lies beside them, into the new ``folder``.

    Raises:
        CheckpointError: as :func:`check_tokenizer`.
    """
    check_tokenizer(source)
    folder.mkdir()
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def _check_place(path: Path) -> None:
    """Refuse a file outside the checkpoint, since exports contain a copy of it.

    The hub's cache is made of links from ``snapshots/REVISION/tokenizer/`` to ``blobs/``.
    """
    try:
        found, root = path.resolve(strict=True), path.parent.parent.resolve()
    except (OSError, RuntimeError) as error:
        unreadable(path, error if isinstance(error, OSError) else OSError(str(error)))
    homes = (root, *((root.parent.parent / "blobs",) if root.parent.name == "snapshots" else ()))
    if not found.is_file() or not any(found.is_relative_to(home) for home in homes):
        raise CheckpointError(f"{path} is no file of this checkpoint but leads elsewhere: put the file itself there")
