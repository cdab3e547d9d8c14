"""Writes a CLIP-format tokenizer in which every word of the grammar is one token.

Run from golden/nano: ``python -m training.tokenizer``.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

from training.scenes import words

START, END = "<|startoftext|>", "<|endoftext|>"
#: CLIP's text length, in tokens.
MAX_LENGTH = 77
FOLDER = Path(__file__).resolve().parents[1] / "tokenizer"

Pair = tuple[str, str]


def learn_merges(vocabulary: Iterable[str]) -> list[Pair]:
    """Byte-pair merges, in order, after which every word is a single token.

    The most frequent pair is merged first, ties in alphabetical order; since this
    is how the tokenizer applies them too, no word can be left half merged.
    """
    pieces = [[*word[:-1], word[-1] + "</w>"] for word in vocabulary]
    merges: list[Pair] = []
    while pairs := Counter(pair for piece in pieces for pair in pairwise(piece)):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        pieces = [_merge(piece, best) for piece in pieces]
    return merges


def vocabulary(merges: Iterable[Pair]) -> dict[str, int]:
    """Token -> id in CLIP's order: bytes, word-final bytes, merges, start, end."""
    letters = byte_letters()
    tokens = [*letters, *(letter + "</w>" for letter in letters)]
    tokens += [first + second for first, second in merges]
    return {token: index for index, token in enumerate([*tokens, START, END])}


def byte_letters() -> list[str]:
    """The 256 printable letters that stand for bytes, in CLIP's (GPT-2's) order."""
    shown = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = 256 - len(shown)
    return [chr(code) for code in [*shown, *range(256, 256 + hidden)]]


def write_tokenizer(folder: Path) -> None:
    """Writes vocab.json, merges.txt, tokenizer_config.json and special_tokens_map.json."""
    merges = learn_merges(words())
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "vocab.json", vocabulary(merges))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    special = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
    _write_json(folder / "special_tokens_map.json", special)
    _write_json(folder / "tokenizer_config.json", {**special, **_settings()})


def _settings() -> dict[str, object]:
    return {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": MAX_LENGTH,
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
    }


def _merge(piece: list[str], pair: Pair) -> list[str]:
    merged: list[str] = []
    for token in piece:
        if merged and (merged[-1], token) == pair:
            merged[-1] += token
        else:
            merged.append(token)
    return merged


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_tokenizer(FOLDER)
