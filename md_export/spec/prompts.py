"""Prompts whose text embeddings an export stores, so that an app with fixed prompts needs no text encoder."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import ConfigDict

from md_export.errors import GoldenError, RecipeError
from md_export.spec.calibration import check_cases
from md_export.spec.sampler import ManySteps
from md_export.system.terminal_text import first_control

# File of an export that holds the embeddings.
PROMPTS_FILE: Final = "prompts.safetensors"


@dataclass(frozen=True)
class PromptPlan:
    """The ``[prompts]`` table of a recipe.

    Attributes:
        stored: prompts whose text embeddings the export stores, in addition to the negative or empty prompt of
            guidance.
        text_encoder: whether the export also has the text encoders; without them it makes pictures of the stored
            prompts only.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    stored: tuple[str, ...]
    text_encoder: bool = True

    def __post_init__(self) -> None:
        """Raise RecipeError, which names the field, for no prompts, too many, or the same one twice."""
        if not self.stored:
            raise RecipeError("[prompts] stored: empty; name at least one prompt, or leave the table out")
        check_cases("prompts", self.stored, (0,), "stored")
        if found := first_control(self.stored):
            raise RecipeError(f"[prompts] stored: {found} holds a control character; remove it")
        prompt, count = Counter(self.stored).most_common(1)[0]
        if count > 1:
            raise RecipeError(f"[prompts] stored: {prompt!r:.80} is named {count} times; name each prompt once")

    def texts(self, steps: ManySteps | None) -> tuple[str, ...]:
        """Return all prompts to store: with guidance first its negative prompt, which is empty by default."""
        negative = [steps.negative or ""] if steps is not None and steps.is_guided else []
        return tuple(dict.fromkeys((*negative, *self.stored)))


def prompts_in(path: Path) -> list[str]:
    """Read prompts from a text file, one per line, without blank lines.

    Raises:
        GoldenError: the file is unreadable or empty.
    """
    try:
        prompts = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise GoldenError(f"{path}: cannot be read as prompts: {error}") from error
    if not prompts:
        raise GoldenError(f"{path} has no prompt; write one per line")
    return prompts
