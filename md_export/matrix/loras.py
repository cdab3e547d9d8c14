"""LoRA files of a build: found by every step under a name, wherever it runs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from md_export.loras import split_lora
from md_export.recipe import Recipe

_PLACE: Final = "lora"


def lora_places(recipes: Iterable[Recipe]) -> dict[str, Path]:
    """All LoRA files of some recipes, by the name that steps know them by."""
    files = dict.fromkeys(Path(split_lora(text)[0]) for recipe in recipes for text in recipe.loras)
    return {f"{_PLACE} {index}": file for index, file in enumerate(files)}


def lora_request(loras: Iterable[str], places: dict[str, Path]) -> list[list[str]]:
    """What a step is told: of each LoRA the name of its place, and what follows the file, such as ``:0.5``."""
    names = {str(file): name for name, file in places.items()}
    found = [(split_lora(text)[0], text) for text in loras]
    return [[names[str(Path(file))], text[len(file) :]] for file, text in found]


def loras_there(request: dict[str, Any]) -> list[str]:
    """The LoRAs of a step's request, each ``FILE`` or ``FILE:scale``, where the step runs."""
    return [f"{request[place]}{tail}" for place, tail in request["loras"]]
