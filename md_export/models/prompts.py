"""Text embeddings of prompts, and the file that stores them in an export.

``prompts.safetensors`` has one tensor for each value that the text encoders compute of a prompt, with one row for each
prompt: ``text_encoder.last_hidden_state`` is float32 ``[N, L, D]``. The header's metadata has one entry, ``prompts``: a
JSON array of the N prompts, in the order of the rows.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load

from md_export.errors import ArtifactError, UsageError
from md_export.models.graph import Component, Family
from md_export.models.tokenizers import tokens_of
from md_export.models.values import ATTENTION_MASK, Kind
from md_export.spec.prompts import PROMPTS_FILE
from md_export.spec.tensors import Array, Arrays, save_tensors
from md_export.system.files import read_limited

# The limit on prompts times 5 MB, the embedding of a prompt by T5 XXL, would be 20 GB; an app ships a few.
_LARGEST: Final = 4 << 30
_METADATA: Final = "prompts"
_TEXTS: Final = TypeAdapter(tuple[str, ...])
_SHOWN: Final = 60
_MOST_SHOWN: Final = 3


@dataclass(frozen=True)
class StoredPrompts:
    """Text embeddings of several prompts.

    Attributes:
        prompts: in the order of the rows.
        values: arrays ``[N, …]`` by the key of the value: ``text_encoder.last_hidden_state``.
        where: folder of the export, for messages.
    """

    prompts: tuple[str, ...]
    values: Arrays
    where: Path

    @property
    def length(self) -> int:
        """Number of tokens of a prompt."""
        return next(int(value.shape[1]) for value in self.values.values() if value.ndim == 3)

    def of(self, prompt: str) -> dict[str, Array]:
        """Return the values of a prompt, ``[1, …]`` by key.

        Raises:
            UsageError: the prompt is not stored.
        """
        if prompt not in self.prompts:
            near = difflib.get_close_matches(prompt, self.prompts, _MOST_SHOWN, 0) or self.prompts[:_MOST_SHOWN]
            raise UsageError(
                f"{self.where} has no text encoder, and no stored embeddings of the prompt {prompt!r:.{_SHOWN}}; give "
                f"one of its {len(self.prompts)} prompts, such as {' or '.join(f'{one!r:.{_SHOWN}}' for one in near)}, "
                "or export again with that prompt in --prompts"
            )
        row = self.prompts.index(prompt)
        return {key: value[row : row + 1] for key, value in self.values.items()}


def text_encoders(family: Family) -> tuple[Component, ...]:
    """Return the rows of the components that compute the embeddings of a prompt; none for a model without text."""
    return tuple(row for row in family.components if row.called == "per prompt")


def values_of_prompt(family: Family) -> dict[str, Kind]:
    """Return the kinds of the values of a prompt that other components read, by key."""
    found = {f"{row.name}.{one.name}": one.kind for row in text_encoders(family) for one in row.outputs}
    return found | ({ATTENTION_MASK.key: ATTENTION_MASK.kind} if ATTENTION_MASK in family.outside else {})


def tokenized(family: Family, folders: Mapping[str, Path], prompt: str, length: int) -> dict[str, Array]:
    """Return the token ids of a prompt, and T5's mask, by key; ``folders``: of the tokenizers, by standard name.

    Raises:
        CheckpointError: a folder has no valid tokenizer.
        UsageError: the prompt is a class that does not exist.
    """
    found: dict[str, Array] = {}
    for name, value in family.tokens.items():
        tokens = tokens_of(folders[name], prompt, length)
        found[value.key] = tokens.ids
        if ATTENTION_MASK in family.outside:
            found[ATTENTION_MASK.key] = tokens.mask
    return found


def write_prompts(stored: StoredPrompts) -> None:
    """Write ``prompts.safetensors`` to the folder ``stored.where``."""
    path = stored.where / PROMPTS_FILE
    save_tensors(stored.values, path, {_METADATA: json.dumps(stored.prompts, ensure_ascii=False)})
    path.chmod(0o644)  # safetensors creates files that only their owner can read


def read_prompts(folder: Path) -> StoredPrompts:
    """Read ``prompts.safetensors`` of an export; that its values are those of the prompts is not checked.

    Raises:
        ArtifactError: the file is missing, or does not hold prompts and a row of each tensor for each of them.
    """
    path = folder / PROMPTS_FILE
    content = read_limited(path, _LARGEST, ArtifactError, "export again")
    try:
        values = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        prompts = _TEXTS.validate_json(header["__metadata__"][_METADATA], strict=True)
    except (SafetensorError, ValidationError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise ArtifactError(f"{path} does not hold text embeddings of prompts: {error!s:.200}; export again") from error
    if not values or any(value.shape[:1] != (len(prompts),) for value in values.values()):
        raise ArtifactError(f"{path} does not have a row of each tensor for each of its {len(prompts)} prompts")
    return StoredPrompts(prompts, values, folder)
