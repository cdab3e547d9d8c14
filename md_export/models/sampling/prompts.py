"""Turn a prompt into token ids and a seed into noise."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from md_export.errors import CheckpointError
from md_export.system.quiet_imports import import_quietly


def tokenize(tokenizer_dir: Path, prompt: str, length: int) -> NDArray[np.int32]:
    """Return CLIP BPE ids ``[1, length]``, truncated and padded as CLIP does.

    Raises:
        CheckpointError: the folder holds no CLIP tokenizer.
    """
    tokenizer = _tokenizer(tokenizer_dir)
    try:
        encoded = tokenizer(prompt, padding="max_length", max_length=length, truncation=True)
    except Exception as error:
        raise CheckpointError(f"{tokenizer_dir} holds no CLIP tokenizer: {error}; replace its files") from error
    return np.asarray([encoded["input_ids"]], dtype=np.int32)


@cache
def _tokenizer(folder: Path) -> Any:
    clip = import_quietly("transformers.models.clip.tokenization_clip")
    # Build the tokenizer from the folder: from file names, this class silently has a vocabulary of two tokens.
    try:
        tokenizer = clip.CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:
        raise CheckpointError(
            f"{folder} holds no CLIP tokenizer (vocab.json, merges.txt, tokenizer_config.json): {error}"
        ) from error
    if len(tokenizer) < 3:
        raise CheckpointError(f"{folder}: the tokenizer's vocabulary is empty; vocab.json and merges.txt are needed")
    return tokenizer


def draw_noise(seed: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Draw x_T ~ N(0, I), the same for the same seed and torch version; golden cases store it."""
    generator = torch.Generator("cpu").manual_seed(seed)
    noise: NDArray[np.float32] = torch.randn(shape, generator=generator, dtype=torch.float32).numpy()
    return noise
