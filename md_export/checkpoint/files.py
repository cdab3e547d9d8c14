"""Small files of an untrusted folder: where they lie, how much of them is read, and errors about them.

Hashes are over the files of a checkpoint that an artifact depends on. Files are named by their path in the checkpoint,
those that a sibling inherits with ``parent/`` before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from pydantic_core import from_json

from md_export.errors import CheckpointError
from md_export.spec.loras import Lora
from md_export.system.files import sha256_of, sha256_of_text

# CLIP's own vocab.json is 0.9 MB, the index of a large sharded model 0.3 MB, a config.json 5 KB.
CONFIG_LIMIT: Final = 1 << 20
TABLE_LIMIT: Final = 32 << 20
LFS_HEADER: Final = b"version https://git-lfs.github.com/spec/"
_SHOWN_CHARACTERS: Final = 160


@dataclass(frozen=True)
class Layout:
    """A checkpoint folder and, for a sibling, the parent that it inherits files from."""

    root: Path
    parent: Path | None = None

    @property
    def tiers(self) -> tuple[Path, ...]:
        """The folders that hold weights; later ones override earlier ones."""
        return (self.root,) if self.parent is None else (self.parent, self.root)

    def find(self, relative: str) -> Path | None:
        """Return the file ``relative``: the sibling's, else the parent's, else ``None``."""
        try:
            return next((tier / relative for tier in reversed(self.tiers) if (tier / relative).is_file()), None)
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


def read_text(path: Path, limit: int) -> str:
    """Return UTF-8 text of at most ``limit`` bytes; raises :class:`CheckpointError` beyond it or when unreadable."""
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        unreadable(path, error)
    if len(content) > limit:
        raise CheckpointError(f"{path} is larger than {limit:,} bytes, which no such file is: replace it")
    if content.startswith(LFS_HEADER):
        git_lfs_pointer(path)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}): replace it") from error


def read_json(path: Path, limit: int = CONFIG_LIMIT) -> dict[str, object]:
    """Return the JSON object in ``path``; raises :class:`CheckpointError` for all else, NaN and Infinity included."""
    text = read_text(path, limit)
    try:
        # Not json: its recursion is bounded by Python's limit, which litert_converter raises beyond the stack.
        values = from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}; correct it there") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} must hold a JSON object {{…}}, not {type(values).__name__}: replace it")
    return values


def unreadable(path: Path, error: OSError) -> NoReturn:
    """Raise :class:`CheckpointError` for a file that cannot be opened or read."""
    raise CheckpointError(f"{path} cannot be read ({error.strerror or error}): check the path and its permissions")


def git_lfs_pointer(path: Path) -> NoReturn:
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
