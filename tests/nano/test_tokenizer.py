"""The stored tokenizer is CLIP's format and knows every caption word by word."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from training.scenes import all_pairs, all_singles, caption_variants, words
from training.text import CaptionEncoder
from training.tokenizer import FOLDER, MAX_LENGTH, learn_merges, vocabulary, write_tokenizer

CAPTIONS = [text for scene in (*all_singles(), *all_pairs()) for text in caption_variants(scene)][::37]


@pytest.fixture(scope="module")
def clip() -> CLIPTokenizer:
    tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(str(FOLDER), local_files_only=True)
    return tokenizer


def test_every_word_is_one_token(clip: CLIPTokenizer) -> None:
    for word in words():
        assert clip.tokenize(word) == [f"{word}</w>"]


def test_own_encoder_gives_clips_ids(clip: CLIPTokenizer) -> None:
    ids = clip(CAPTIONS, padding="max_length", max_length=MAX_LENGTH)["input_ids"]
    assert CaptionEncoder()(CAPTIONS, MAX_LENGTH).tolist() == ids


def test_case_and_unknown_words_are_taken(clip: CLIPTokenizer) -> None:
    assert clip("A Red CIRCLE")["input_ids"] == clip("a red circle")["input_ids"]
    decoded = str(clip.decode(clip("a zebra, été")["input_ids"], skip_special_tokens=True))
    assert decoded.strip() == "a zebra , été"


def test_padding_is_the_end_token(clip: CLIPTokenizer) -> None:
    ids = clip("a red ring", padding="max_length", max_length=MAX_LENGTH)["input_ids"]
    assert len(ids) == MAX_LENGTH
    assert ids[0] == len(clip) - 2
    assert set(ids[4:]) == {len(clip) - 1}


def test_the_stored_files_are_what_the_script_writes(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (FOLDER / path.name).read_bytes(), path.name


def test_merges_leave_no_word_in_pieces() -> None:
    merges = learn_merges(["red", "green", "ring", "rings"])
    assert {"red</w>", "green</w>", "ring</w>", "rings</w>"} <= vocabulary(merges).keys()
