"""Vocabulary and merges, from their own files or from the one that transformers 5 saves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from md_export.checkpoint.files import tokenizer_tables
from md_export.errors import CheckpointError


@pytest.mark.seen("tokenizer as transformers 5 saves it", "vocabulary and merges are taken from `tokenizer.json`")
def test_the_same_tables_from_either_form(nano: Path, tmp_path: Path) -> None:
    CLIPTokenizer.from_pretrained(str(nano / "tokenizer")).save_pretrained(tmp_path)
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).unlink(missing_ok=True)
    (vocabulary, merges), (wanted, lines) = tokenizer_tables(tmp_path), tokenizer_tables(nano / "tokenizer")
    assert json.loads(vocabulary) == json.loads(wanted)
    assert merges.decode().splitlines() == lines.decode().splitlines()


@pytest.mark.parametrize("content", [{}, {"model": {"vocab": {}}}, {"model": {"type": "Unigram", "vocab": []}}])
def test_another_kind_of_tokenizer(tmp_path: Path, content: dict[str, object]) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="no table of byte-pair merges"):
        tokenizer_tables(tmp_path)
