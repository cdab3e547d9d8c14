"""TOML that somebody else wrote."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Final

from md_export.data import builtin_recipes
from md_export.errors import RecipeError
from md_export.files import read_regular

# The rules of a search for each of the full-size model's 700 modules have 50 KB; tomllib takes a time and memory
# that grow with the square of a dotted key.
_LARGEST_FILE: Final = 1 << 17


def read_toml(path: Path) -> dict[str, Any]:
    """The table in a recipe's file.

    Raises:
        RecipeError: it cannot be read, is too large, or is no TOML.
    """
    try:
        content = read_regular(path, _LARGEST_FILE)
    except OSError as error:
        known = ", ".join(builtin_recipes())
        raise RecipeError(f"{path}: cannot be read: {error.strerror}; name a .toml file or one of {known}") from error
    if content is None:
        raise RecipeError(f"{path}: no regular file of at most {_LARGEST_FILE} bytes; this is no recipe")
    return parse_toml(content, path)


def parse_toml(content: bytes, path: Path) -> dict[str, Any]:
    """The same of its content; ``path`` stands in error messages."""
    try:
        return tomllib.loads(content.decode())
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: cannot be read: {error}") from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise RecipeError(f"{path}: not valid TOML: {error}") from error
