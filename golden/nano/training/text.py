"""Captions to token ids without a tokenizer library: every word of the grammar is one token."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from training.tokenizer import END, FOLDER, START


class CaptionEncoder:
    """Ids as CLIPTokenizer gives for the grammar's captions (tests/nano holds it to that)."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self.vocabulary: dict[str, int] = json.loads((folder / "vocab.json").read_text("utf-8"))

    def __len__(self) -> int:
        return len(self.vocabulary)

    def __call__(self, captions: list[str], length: int) -> Tensor:
        """Ids [N, length]: start, words, end, then padded with end."""
        rows = [self._row(caption) for caption in captions]
        end = self.vocabulary[END]
        return torch.tensor([row + [end] * (length - len(row)) for row in rows])

    def _row(self, caption: str) -> list[int]:
        words = caption.lower().replace(",", " ,").split()
        inner = [self.vocabulary[word + "</w>"] for word in words]
        return [self.vocabulary[START], *inner, self.vocabulary[END]]
