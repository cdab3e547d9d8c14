"""Find, read and hash the files of an untrusted checkpoint folder, with limits of size.

Hashes cover the files of a checkpoint that an artifact depends on. A file's name is its path in the checkpoint, with
the prefix ``parent/`` if a sibling inherits it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from pydantic_core import from_json

from md_export.errors import CheckpointError
from md_export.models.tokenizers import LABELS_FOLDER, SENTENCEPIECE, read_labels, write_labels
from md_export.spec.given import CHECKPOINT_FOLDERS
from md_export.spec.loras import PEFT_CONFIG, Lora
from md_export.system.files import read_limited, sha256_of, sha256_of_text

# CLIP's vocab.json has 0.9 MB, the index of a large sharded model 0.3 MB, a config.json 5 KB.
CONFIG_LIMIT: Final = 1 << 20
TABLE_LIMIT: Final = 32 << 20
LFS_HEADER: Final = b"version https://git-lfs.github.com/spec/"
_SHOWN_CHARACTERS: Final = 160


@dataclass(frozen=True)
class Layout:
    """A checkpoint folder and, for a sibling, the parent that it inherits files from.

    ``replaced``: subfolders without inherited files, because the sibling has another model there.
    """

    root: Path
    parent: Path | None = None
    replaced: tuple[str, ...] = ()

    def tiers(self, folder: str) -> tuple[Path, ...]:
        """Return the checkpoints that provide files of a subfolder; later ones override earlier ones."""
        return (self.root,) if self.parent is None or folder in self.replaced else (self.parent, self.root)

    def find(self, relative: str) -> Path | None:
        """Return the file ``relative`` of the sibling, else of the parent, else None."""
        tiers = self.tiers(relative.partition("/")[0])
        try:
            return next((tier / relative for tier in reversed(tiers) if (tier / relative).is_file()), None)
        except OSError as error:
            unreadable(self.root / relative, error)

    def require(self, relative: str) -> Path:
        """Return the file as :meth:`find`; raise :class:`CheckpointError` if it is missing."""
        found = self.find(relative)
        if found is None:
            raise CheckpointError(
                f"{self.root / relative} is missing: give a diffusers-style checkpoint folder that holds "
                f"{CHECKPOINT_FOLDERS}"
            )
        return found


def read_text(path: Path, limit: int, name: str | None = None) -> str:
    """Return UTF-8 text of at most ``limit`` bytes; raise :class:`CheckpointError` if it is larger or unreadable.

    ``name``: name of the file in errors; its path by default.
    """
    where = name or path
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        unreadable(where, error)
    if len(content) > limit:
        raise CheckpointError(f"{where} is larger than {limit:,} bytes, the limit for such files: replace it")
    if content.startswith(LFS_HEADER):
        git_lfs_pointer(where)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(
            f"{where} is not UTF-8 text ({error.reason} at byte {error.start}): replace it"
        ) from error


def read_json(path: Path, limit: int = CONFIG_LIMIT) -> dict[str, object]:
    """Return the JSON object in ``path``; raise :class:`CheckpointError` for anything else.

    NaN and Infinity are accepted: they are not JSON, but Python writes them, and diffusers' schedulers save them.
    """
    text = read_text(path, limit)
    try:
        # Not json: it recurses up to Python's limit, which litert_converter raises above what the stack can hold.
        values = from_json(text)
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}; correct it there") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} must hold a JSON object {{…}}, not {type(values).__name__}: replace it")
    return values


def unreadable(path: Path | str, error: OSError) -> NoReturn:
    """Raise :class:`CheckpointError` for a file that cannot be opened or read."""
    raise CheckpointError(f"{path} cannot be read ({error.strerror or error}): check the path and its permissions")


def git_lfs_pointer(path: Path | str) -> NoReturn:
    """Raise :class:`CheckpointError` for the placeholder of a file in Git LFS."""
    raise CheckpointError(f"{path} is a Git LFS placeholder, not the file itself: run `git lfs pull` in that clone")


def shown(name: str) -> str:
    """Return a name from an untrusted file, escaped and cut for a terminal."""
    printable = name if name.isprintable() else name.encode("unicode_escape").decode("ascii")
    return printable if len(printable) <= _SHOWN_CHARACTERS else printable[: _SHOWN_CHARACTERS - 1] + "…"


def capped(lines: list[str], most: int = 20) -> Iterator[str]:
    """Yield the first ``most`` lines, then the number of those left out."""
    yield from lines[:most]
    if len(lines) > most:
        yield f"… and {len(lines) - most} more"


INHERITED: Final = "parent/"


def hash_of_file(file: Path, name: str | None = None) -> str:
    """Return the SHA-256 of a file's content; raise CheckpointError, with ``name``, if it cannot be read."""
    try:
        return sha256_of(file)
    except OSError as error:
        unreadable(name or file, error)


def hash_of_files(files: Mapping[str, str]) -> str:
    """Return the SHA-256 of the names and contents of files, given the SHA-256 of each by its name."""
    return sha256_of_text("".join(f"{name}\0{digest}\n" for name, digest in sorted(files.items())))


def hash_of_folder(files: Mapping[str, str], folder: str) -> str:
    """Return the SHA-256 of weights and config of the component in ``folder``, given those of all files.

    A sibling that inherits all of them gets the same hash as its parent.
    """
    own = {name: digest for name, digest in files.items() if name.removeprefix(INHERITED).startswith(f"{folder}/")}
    # A sibling's file may have the parent's file name and override only some of its tensors; then both are hashed.
    plain = {name: name.removeprefix(INHERITED) for name in own}
    if len(set(plain.values())) == len(plain):
        own = {plain[name]: digest for name, digest in own.items()}
    return hash_of_files(own)


def hashes_of_loras(folder: str, loras: Sequence[Lora]) -> dict[str, str]:
    """Return the SHA-256 of each LoRA of the component in ``folder``, by a name with its index and scale."""
    found = {}
    for place, lora in enumerate(loras):
        found[f"{folder}/lora {place} at {lora.factor!r}"] = hash_of_file(lora.path, lora.name)
        if lora.config is not None:
            found[f"{folder}/lora {place} {PEFT_CONFIG}"] = hash_of_file(lora.config, lora.name)
    return found


def without_loras(hashes: Mapping[str, str]) -> dict[str, str]:
    """Return the hashes of a checkpoint's files without those of :func:`hashes_of_loras`."""
    return {name: digest for name, digest in hashes.items() if not name.rpartition("/")[2].startswith("lora ")}


# Sizes of CLIP's files: 0.9 MB, 0.5 MB, 2.2 MB, below 1 KB each.
_LIMITS: Final[Mapping[str, int]] = {
    "vocab.json": TABLE_LIMIT,
    "merges.txt": TABLE_LIMIT,
    "tokenizer.json": TABLE_LIMIT,
    "tokenizer_config.json": CONFIG_LIMIT,
    "special_tokens_map.json": CONFIG_LIMIT,
    "added_tokens.json": CONFIG_LIMIT,
    # T5's has 0.8 MB.
    SENTENCEPIECE: TABLE_LIMIT,
}
TOKENIZER_FILES: Final = tuple(_LIMITS)
# transformers passes these to constructors, or loads code by them.
_FORBIDDEN: Final = ("init_inputs", "auto_map", "vocab_file", "merges_file", "tokenizer_object")
_TEMPLATES: Final = ("chat_template.jinja", "chat_templates")


def tokenizer_dir(layout: Layout, name: str = "tokenizer") -> Path:
    """Return the sibling's tokenizer folder ``name`` if it has one, else the parent's."""
    if name == LABELS_FOLDER:  # only exports have this folder; a checkpoint has the labels in its config
        return layout.require("transformer/config.json").parent.parent
    for folder in (tier / name for tier in reversed(layout.tiers(name))):
        if any((folder / file).is_file() for file in ("tokenizer.json", SENTENCEPIECE)):
            return folder
        if folder.is_dir():
            if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
                return folder
            raise CheckpointError(f"{folder} holds no tokenizer: put vocab.json and merges.txt there")
    return layout.require(f"{name}/vocab.json").parent


def check_tokenizer(folder: Path) -> None:
    """Raise :class:`CheckpointError` for unsafe tokenizer files.

    These are files that are too large, not JSON, or links out of the checkpoint, and fields that transformers would
    pass to constructors.
    """
    for name in _TEMPLATES:
        if (folder / name).exists() or (folder / name).is_symlink():
            raise CheckpointError(f"{folder / name} is for chat models and not used here: remove it")
    for name, limit in _LIMITS.items():
        path = folder / name
        if path.is_symlink() or path.exists():
            _check_place(path)
            if name == SENTENCEPIECE:
                read_limited(path, limit, CheckpointError, "replace it")
                continue
            if not name.endswith(".json"):
                read_text(path, limit)
                continue
            values = read_json(path, limit)
            forbidden = [field for field in _FORBIDDEN if name == "tokenizer_config.json" and values.get(field)]
            if forbidden:
                raise CheckpointError(f"{path} has {', '.join(forbidden)}, which no tokenizer here needs: remove it")


def tokenizer_tables(folder: Path) -> tuple[bytes, bytes]:
    """Return the content of ``vocab.json`` and ``merges.txt``, made from ``tokenizer.json`` if they are missing.

    transformers 5 saves only ``tokenizer.json``.

    Raises:
        CheckpointError: neither can be read, or ``tokenizer.json`` has another kind of tokenizer.
    """
    files = folder / "vocab.json", folder / "merges.txt"
    if all(file.is_file() for file in files):
        vocabulary, merges = (read_text(file, TABLE_LIMIT).encode() for file in files)
        return vocabulary, merges
    model = read_json(folder / "tokenizer.json", TABLE_LIMIT).get("model")
    table, pairs = (model.get("vocab"), model.get("merges")) if isinstance(model, dict) else (None, None)
    if not isinstance(table, dict) or not isinstance(pairs, list):
        raise CheckpointError(f"{folder / 'tokenizer.json'} has no table of byte-pair merges, so it is not CLIP's")
    lines = [" ".join(map(str, pair)) if isinstance(pair, list) else str(pair) for pair in pairs]
    text = json.dumps(table, ensure_ascii=False)
    return text.encode(), "\n".join(["#version: 0.2", *lines, ""]).encode()


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy the tokenizer's files, and no others, to the new ``folder``.

    Raises:
        CheckpointError: as :func:`check_tokenizer`.
    """
    if folder.name == LABELS_FOLDER:
        folder.mkdir()
        write_labels(read_labels(source), folder)
        return
    check_tokenizer(source)
    folder.mkdir()
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def _check_place(path: Path) -> None:
    """Raise CheckpointError for a link out of the checkpoint, because exports contain a copy of the file.

    Links from ``snapshots/REVISION/tokenizer/`` to ``blobs/``, as in the hub's cache, are allowed.
    """
    try:
        found, root = path.resolve(strict=True), path.parent.parent.resolve()
    except (OSError, RuntimeError) as error:
        unreadable(path, error if isinstance(error, OSError) else OSError(str(error)))
    homes = (root, *((root.parent.parent / "blobs",) if root.parent.name == "snapshots" else ()))
    if not found.is_file() or not any(found.is_relative_to(home) for home in homes):
        raise CheckpointError(f"{path} is not a file of this checkpoint, but a link or a pipe: put the file there")
