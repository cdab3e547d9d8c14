"""Token ids of a prompt: by CLIP's or T5's tokenizer, which are transformers' own, or the label of a class.

A folder with ``spiece.model``, or with a ``tokenizer.json`` of a Unigram model, is T5's. One with ``labels.json`` holds
the names of classes, from which a prompt chooses by name or by number.
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

# What a checkpoint without text has in a tokenizer's place, and the file there.
LABELS_FOLDER: Final = "labels"
LABELS: Final = "labels.json"
SENTENCEPIECE: Final = "spiece.model"
_TRANSFORMER: Final = "transformer/config.json"
_INDEX: Final = "model_index.json"
_LIMIT: Final = 32 << 20
_SHOWN: Final = 60


@dataclass(frozen=True)
class Labels:
    """Classes of pictures: their number, and the number of each name."""

    count: int
    names: Mapping[str, int]

    def label(self, prompt: str) -> int:
        """Return the class that a prompt names, by number or name; of an empty one that after the last, no class.

        Raises:
            UsageError: there is no such class.
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
        """Return what :meth:`label` reads as a class: one of its names if it has any, else its number."""
        names = (name for name, one in self.names.items() if one == number and name and not name.isdecimal())
        return next(names, str(number))


def write_labels(labels: Labels, folder: Path) -> None:
    """Write ``labels.json`` into a folder."""
    content = {"count": labels.count, "names": dict(labels.names)}
    (folder / LABELS).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _has_labels(folder: Path) -> bool:
    """Whether a folder is an export's labels, or a checkpoint without a tokenizer."""
    return any((folder / name).is_file() for name in (LABELS, _TRANSFORMER))


def read_labels(folder: Path) -> Labels:
    """Read the classes in ``labels.json`` of a folder, or in the files of a checkpoint.

    A checkpoint has names in ``id2label`` of ``model_index.json``, several for a class with commas between.

    Raises:
        CheckpointError: they cannot be read.
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
    """Ids of one prompt, int32 ``[1, length]`` or of a class ``[1]``, and 1 for each that is no padding, float32."""

    ids: NDArray[np.int32]
    mask: NDArray[np.float32]


def tokens_of(folder: Path, prompt: str, length: int) -> Tokens:
    """Tokenize a prompt, truncated and padded to ``length`` as the tokenizer does.

    Raises:
        CheckpointError: the folder holds no tokenizer.
        UsageError: there is no such class.
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
    """Return the end of a prompt that has no place among ``length`` token ids; empty where all of it has.

    Raises:
        CheckpointError: the folder holds no tokenizer.
    """
    if _has_labels(tokenizer_dir):
        return ""
    tokenizer = _tokenizer(tokenizer_dir)
    ids = tokenizer(_cleaned(tokenizer, _kind(tokenizer_dir), prompt))["input_ids"]
    # The last of them is the end token, which the shortened prompt has, too.
    return str(tokenizer.decode(ids[length - 1 : -1])) if len(ids) > length else ""


def _cleaned(tokenizer: Any, kind: str, prompt: str) -> str:
    """Return a prompt as diffusers' pipelines hand it to a tokenizer: in lower case, or with all vectors of its tokens.

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
    """Return the tokenizer of a folder, read again if its files have changed."""
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return _read(folder, tuple((file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in files))


@cache
def _read(folder: Path, _files: tuple[tuple[str, int, int], ...]) -> Any:
    # Build the tokenizer from the folder: from file names, CLIP's class silently has a vocabulary of two tokens.
    kind = _kind(folder)
    library: Any = import_quietly(f"transformers.models.{kind.lower()}.tokenization_{kind.lower()}", "checkpoints")
    try:
        tokenizer = getattr(library, f"{kind}Tokenizer").from_pretrained(str(folder), local_files_only=True)
    except ImportError as error:
        raise MissingExtraError(
            f"{folder} has {SENTENCEPIECE} and no tokenizer.json: reading it needs sentencepiece: "
            "pip install sentencepiece"
        ) from error
    except Exception as error:
        files = "vocab.json, merges.txt, tokenizer_config.json" if kind == "CLIP" else "tokenizer.json"
        raise CheckpointError(f"{folder} holds no {kind} tokenizer ({files}): {error}") from error
    if len(tokenizer) < 3:
        raise CheckpointError(f"{folder}: the tokenizer's vocabulary is empty; vocab.json and merges.txt are needed")
    return tokenizer
