"""Write tokenizers for random weights: with one token per byte like CLIP's, or per letter like T5's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from md_export.errors import ConfigError
from md_export.system.vendors import import_quietly

START, END = "<|startoftext|>", "<|endoftext|>"


def write_tokenizer(folder: Path, encoder: str, config: Mapping[str, Any]) -> None:
    """Write a tokenizer for the text encoder in the folder ``encoder``, with its config.

    Raises:
        ConfigError: the text encoder has too few rows.
    """
    write = _write_letters if "d_model" in config else _write_bytes
    write(folder, encoder, config)


def _write_letters(folder: Path, encoder: str, config: Mapping[str, Any]) -> None:
    """Write a tokenizer of T5's kind with one token per letter."""
    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((letter, -3.0) for letter in ["▁", *letters])]
    rows = int(config["vocab_size"])
    if len(pieces) > rows:
        raise ConfigError(f"{encoder}/config.json: vocab_size={rows}; a tokenizer of letters needs {len(pieces)}")
    library: Any = import_quietly("transformers.models.t5.tokenization_t5", "checkpoints")
    library.T5Tokenizer(vocab=pieces, extra_ids=0).save_pretrained(str(folder))


def _write_bytes(folder: Path, encoder: str, config: Mapping[str, Any]) -> None:
    """Write CLIP's byte-level tokenizer without merges: one token per byte; start and end as in the text encoder."""
    letters = _byte_letters()
    tokens = [*letters, *(letter + "</w>" for letter in letters)]
    rows = int(config.get("vocab_size", 49408))
    start, end = (int(config.get(f"{k}_token_id", d)) for k, d in (("bos", 49406), ("eos", 49407)))
    if not len(tokens) <= start < rows or not len(tokens) <= end < rows or start == end:
        raise ConfigError(
            f"{encoder}/config.json: vocab_size={rows}, bos_token_id={start}, eos_token_id={end}; a byte-level "
            f"tokenizer needs two ids for start and end, from {len(tokens)} to vocab_size - 1"
        )
    vocabulary = {token: index for index, token in enumerate(tokens)}
    write_json(folder / "vocab.json", {**vocabulary, START: start, END: end})
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    # Id 0 is the first letter, "!".
    pad = letters[0] if config.get("pad_token_id") == 0 else END
    special = {"bos_token": START, "eos_token": END, "pad_token": pad, "unk_token": END}
    write_json(folder / "special_tokens_map.json", special)
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": int(config.get("max_position_embeddings", 77)),
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
    }
    write_json(folder / "tokenizer_config.json", {**special, **settings})


def _byte_letters() -> list[str]:
    """Return the 256 printable letters that represent bytes, in the order of GPT-2's and CLIP's vocabularies."""
    shown = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(code) for code in [*shown, *range(256, 512 - len(shown))]]


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Write a JSON file; create its folder."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
