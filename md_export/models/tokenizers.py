"""Compute the token ids of a prompt with transformers' CLIP or T5 tokenizer, or the label of a class.

A folder with ``spiece.model``, or with the ``tokenizer.json`` of a Unigram model, is for T5. A folder with
``labels.json`` has the names of classes; a prompt is then the name or number of a class.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import count, takewhile
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from md_export.errors import CheckpointError, MissingExtraError, UsageError
from md_export.system.files import read_limited
from md_export.system.vendors import import_quietly

# Folder in exports that replaces the tokenizer for a model without text, and its file.
LABELS_FOLDER: Final = "labels"
LABELS: Final = "labels.json"
SENTENCEPIECE: Final = "spiece.model"
_TRANSFORMER: Final = "transformer/config.json"
_INDEX: Final = "model_index.json"
_LIMIT: Final = 32 << 20
_SHOWN: Final = 60


@dataclass(frozen=True)
class Labels:
    """Classes of pictures: their count, and the class number of each name."""

    count: int
    names: Mapping[str, int]

    def label(self, prompt: str) -> int:
        """Return the class number for a prompt, which is a number or name; ``count``, no class, for an empty one.

        Raises:
            UsageError: the class does not exist.
        """
        text = prompt.strip()
        if not text:
            return self.count
        number = int(text) if text.isdecimal() and len(text) < len(str(self.count)) + 1 else self.names.get(text)
        if number is not None and number < self.count:
            return number
        near = difflib.get_close_matches(text, self.names, n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise UsageError(
            f"no class {prompt!r:.{_SHOWN}}: give a number from 0 to {self.count - 1}"
            f"{', or one of ' + str(len(self.names)) + ' names' if self.names else ''}{hint}"
        )

    def prompt(self, number: int) -> str:
        """Return a prompt for a class: one of its names if it has any, else its number."""
        names = (name for name, one in self.names.items() if one == number and name and not name.isdecimal())
        return next(names, str(number))


def write_labels(labels: Labels, folder: Path) -> None:
    """Write ``labels.json`` to a folder."""
    content = {"count": labels.count, "names": dict(labels.names)}
    (folder / LABELS).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _has_labels(folder: Path) -> bool:
    """Return whether a folder has an export's labels, or is a checkpoint without a tokenizer."""
    return any((folder / name).is_file() for name in (LABELS, _TRANSFORMER))


def read_labels(folder: Path) -> Labels:
    """Return the classes in ``labels.json`` of a folder, or in the files of a checkpoint.

    A checkpoint has names in ``id2label`` of ``model_index.json``; commas separate several names of a class.

    Raises:
        CheckpointError: the files cannot be read.
    """
    path = folder / LABELS
    try:
        if path.is_file():
            return TypeAdapter(Labels).validate_json(read_limited(path, _LIMIT, CheckpointError, "export again"))
        path = folder / _TRANSFORMER
        classes = json.loads(read_limited(path, _LIMIT, CheckpointError, "replace it")).get("num_embeds_ada_norm", 1000)
        path, named = folder / _INDEX, {}
        if path.is_file():
            named = json.loads(read_limited(path, _LIMIT, CheckpointError, "replace it")).get("id2label", {})
        pairs = {int(number): str(names) for number, names in named.items()}
        return Labels(classes, {name.strip(): number for number, names in pairs.items() for name in names.split(",")})
    except (ValidationError, ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} does not hold the number and names of classes: replace it") from error


@dataclass(frozen=True)
class Tokens:
    """Token ids of a prompt, int32 ``[1, length]`` (``[1]`` for a class), and a float32 mask: 0 for padding, else 1."""

    ids: NDArray[np.int32]
    mask: NDArray[np.float32]


def tokens_of(folder: Path, prompt: str, length: int) -> Tokens:
    """Return the token ids of a prompt, truncated and padded to ``length``.

    Raises:
        CheckpointError: the folder has no valid tokenizer.
        UsageError: the class does not exist.
    """
    if _has_labels(folder):
        return Tokens(np.asarray([read_labels(folder).label(prompt)], dtype=np.int32), np.ones(1, np.float32))
    kind = _kind(folder)
    try:
        tokenizer = _tokenizer(folder)
        encoded = tokenizer(_cleaned(tokenizer, kind, prompt), padding="max_length", max_length=length, truncation=True)
    except Exception as error:
        raise CheckpointError(f"{folder} holds no {kind} tokenizer: {error}; replace its files") from error
    ids, mask = encoded["input_ids"], encoded["attention_mask"]
    return Tokens(np.asarray([ids], dtype=np.int32), np.asarray([mask], dtype=np.float32))


def tokenize(tokenizer_dir: Path, prompt: str, length: int) -> NDArray[np.int32]:
    """Return the ids of :func:`tokens_of`."""
    return tokens_of(tokenizer_dir, prompt, length).ids


def words_cut(tokenizer_dir: Path, prompt: str, length: int) -> str:
    """Return the end of a prompt that does not fit into ``length`` token ids; empty if all of it fits.

    Raises:
        CheckpointError: the folder has no valid tokenizer.
    """
    if _has_labels(tokenizer_dir):
        return ""
    tokenizer = _tokenizer(tokenizer_dir)
    ids = tokenizer(_cleaned(tokenizer, _kind(tokenizer_dir), prompt))["input_ids"]
    # The last id is the end token, which the truncated prompt also has.
    return str(tokenizer.decode(ids[length - 1 : -1])) if len(ids) > length else ""


def _cleaned(tokenizer: Any, kind: str, prompt: str) -> str:
    """Return a prompt as diffusers' pipelines pass it to the tokenizer: in lower case, or with all its vectors.

    ``<cat>`` of a textual inversion becomes ``<cat> <cat>_1 <cat>_2``: diffusers adds a token for each vector and
    expands prompts in this way (``TextualInversionLoaderMixin``).
    """
    if kind == "T5":
        return prompt.lower().strip()
    added = tokenizer.added_tokens_encoder
    for token in [token for token in added if f"{token}_1" in added and token in tokenizer.tokenize(prompt)]:
        more = takewhile(added.__contains__, (f"{token}_{number}" for number in count(1)))
        prompt = prompt.replace(token, " ".join([token, *more]))
    return prompt


def _kind(folder: Path) -> str:
    if (folder / SENTENCEPIECE).is_file():
        return "T5"
    path = folder / "tokenizer.json"
    if not path.is_file() or (folder / "vocab.json").is_file():
        return "CLIP"
    try:
        model = json.loads(read_limited(path, _LIMIT, CheckpointError, "replace it")).get("model")
    except (ValueError, AttributeError, RecursionError):
        return "CLIP"
    return "T5" if isinstance(model, dict) and model.get("type") == "Unigram" else "CLIP"


def _tokenizer(folder: Path) -> Any:
    """Return the tokenizer of a folder; it is read again if a file has changed."""
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return _read(folder, tuple((file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in files))


@cache
def _read(folder: Path, _files: tuple[tuple[str, int, int], ...]) -> Any:
    # Pass the folder, not file names: with these, CLIP's class silently builds a vocabulary of two tokens.
    kind = _kind(folder)
    library: Any = import_quietly(f"transformers.models.{kind.lower()}.tokenization_{kind.lower()}", "checkpoints")
    try:
        tokenizer = getattr(library, f"{kind}Tokenizer").from_pretrained(str(folder), local_files_only=True)
    except ImportError as error:
        raise MissingExtraError(
            f"{folder} has {SENTENCEPIECE} but no tokenizer.json, so it needs sentencepiece: pip install sentencepiece"
        ) from error
    except Exception as error:
        files = "vocab.json, merges.txt, tokenizer_config.json" if kind == "CLIP" else "tokenizer.json"
        raise CheckpointError(f"{folder} holds no {kind} tokenizer ({files}): {error}") from error
    if len(tokenizer) < 3:
        raise CheckpointError(f"{folder}: the tokenizer's vocabulary is empty; vocab.json and merges.txt are needed")
    return tokenizer
