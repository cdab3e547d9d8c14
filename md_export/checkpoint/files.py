"""Small files of an untrusted folder: where they lie, how much of them is read, and errors about them.

Hashes are over the files of a checkpoint that an artifact depends on. Files are named by their path in the checkpoint,
those that a sibling inherits with ``parent/`` before it.
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
from md_export.spec.loras import PEFT_CONFIG, Lora
from md_export.system.files import read_limited, sha256_of, sha256_of_text

# CLIP's own vocab.json is 0.9 MB, the index of a large sharded model 0.3 MB, a config.json 5 KB.
CONFIG_LIMIT: Final = 1 << 20
TABLE_LIMIT: Final = 32 << 20
LFS_HEADER: Final = b"version https://git-lfs.github.com/spec/"
_SHOWN_CHARACTERS: Final = 160


@dataclass(frozen=True)
class Layout:
    """A checkpoint folder and, for a sibling, the parent that it inherits files from.

    ``replaced``: subfolders of which nothing is inherited, since another model is in them.
    """

    root: Path
    parent: Path | None = None
    replaced: tuple[str, ...] = ()

    def tiers(self, folder: str) -> tuple[Path, ...]:
        """The checkpoints that hold files of a subfolder; later ones override earlier ones."""
        return (self.root,) if self.parent is None or folder in self.replaced else (self.parent, self.root)

    def find(self, relative: str) -> Path | None:
        """Return the file ``relative``: the sibling's, else the parent's, else ``None``."""
        tiers = self.tiers(relative.partition("/")[0])
        try:
            return next((tier / relative for tier in reversed(tiers) if (tier / relative).is_file()), None)
        except OSError as error:
            unreadable(self.root / relative, error)

    def require(self, relative: str) -> Path:
        """Like :meth:`find`, but a missing file raises :class:`CheckpointError`."""
        found = self.find(relative)
        if found is None:
            raise CheckpointError(
                f"{self.root / relative} is missing: give a diffusers-style checkpoint folder that holds "
                "text_encoder/, tokenizer/, unet/, vae/ and scheduler/"
            )
        return found


def read_text(path: Path, limit: int, name: str | None = None) -> str:
    """Return UTF-8 text of at most ``limit`` bytes; raises :class:`CheckpointError` beyond it or when unreadable.

    ``name``: what errors call the file; its path by default.
    """
    where = name or path
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        unreadable(where, error)
    if len(content) > limit:
        raise CheckpointError(f"{where} is larger than {limit:,} bytes, which no such file is: replace it")
    if content.startswith(LFS_HEADER):
        git_lfs_pointer(where)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(
            f"{where} is not UTF-8 text ({error.reason} at byte {error.start}): replace it"
        ) from error


def read_json(path: Path, limit: int = CONFIG_LIMIT) -> dict[str, object]:
    """Return the JSON object in ``path``; raises :class:`CheckpointError` for all else.

    NaN and Infinity, which JSON lacks and Python writes, are read: diffusers' solvers save them in fields of their own.
    """
    text = read_text(path, limit)
    try:
        # Not json: its recursion is bounded by Python's limit, which litert_converter raises beyond the stack.
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
    """Return a name from an untrusted file, made printable and short enough for a terminal."""
    printable = name if name.isprintable() else name.encode("unicode_escape").decode("ascii")
    return printable if len(printable) <= _SHOWN_CHARACTERS else printable[: _SHOWN_CHARACTERS - 1] + "…"


def capped(lines: list[str], most: int = 20) -> Iterator[str]:
    """Yield the first ``most`` lines, then how many were left out."""
    yield from lines[:most]
    if len(lines) > most:
        yield f"… and {len(lines) - most} more"


INHERITED: Final = "parent/"


def hash_of_file(file: Path, name: str | None = None) -> str:
    """Return the SHA-256 of a file's content; CheckpointError where it cannot be read, which calls it ``name``."""
    try:
        return sha256_of(file)
    except OSError as error:
        unreadable(name or file, error)


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
    found = {}
    for place, lora in enumerate(loras):
        found[f"{folder}/lora {place} at {lora.factor!r}"] = hash_of_file(lora.path, lora.name)
        if lora.config is not None:
            found[f"{folder}/lora {place} {PEFT_CONFIG}"] = hash_of_file(lora.config, lora.name)
    return found


# Of CLIP's: 0.9 MB, 0.5 MB, 2.2 MB, below 1 KB each.
_LIMITS: Final[Mapping[str, int]] = {
    "vocab.json": TABLE_LIMIT,
    "merges.txt": TABLE_LIMIT,
    "tokenizer.json": TABLE_LIMIT,
    "tokenizer_config.json": CONFIG_LIMIT,
    "special_tokens_map.json": CONFIG_LIMIT,
    "added_tokens.json": CONFIG_LIMIT,
    # T5's: 0.8 MB.
    SENTENCEPIECE: TABLE_LIMIT,
}
TOKENIZER_FILES: Final = tuple(_LIMITS)
# transformers hands these to constructors, or looks for code by them.
_FORBIDDEN: Final = ("init_inputs", "auto_map", "vocab_file", "merges_file", "tokenizer_object")
_TEMPLATES: Final = ("chat_template.jinja", "chat_templates")


def tokenizer_dir(layout: Layout, name: str = "tokenizer") -> Path:
    """Return the sibling's tokenizer folder ``name`` if it has one, else the parent's."""
    if name == LABELS_FOLDER:  # which only exports have: the names lie in the checkpoint's own files
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
    """Raise :class:`CheckpointError` for files that are too large, no JSON, links that lead elsewhere, or fields that
    transformers would pass on."""
    for name in _TEMPLATES:
        if (folder / name).exists() or (folder / name).is_symlink():
            raise CheckpointError(f"{folder / name} is for chat models, which nothing here is: remove it")
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
    """Return the content of ``vocab.json`` and ``merges.txt``, written from ``tokenizer.json`` where they are missing.

    transformers 5 saves ``tokenizer.json`` only.

    Raises:
        CheckpointError: neither can be read, or ``tokenizer.json`` is of another kind of tokenizer.
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
    """Copy the tokenizer's files, and nothing else that lies beside them, into the new ``folder``.

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
