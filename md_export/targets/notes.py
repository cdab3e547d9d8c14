"""How an artifact's notes are called in its format's own metadata."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

# The one entry that holds all notes as JSON, where a format has named blobs; the prefix of each where it has pairs.
NAME: Final = "md_export"
_PREFIX: Final = f"{NAME}."


def labelled(notes: Mapping[str, str]) -> dict[str, str]:
    """Notes as pairs among those of others, in alphabetical order."""
    return {_PREFIX + name: notes[name] for name in sorted(notes)}


def notes_among(pairs: Mapping[str, str]) -> dict[str, str]:
    """What :func:`labelled` put there; empty for an artifact by another tool."""
    return {name.removeprefix(_PREFIX): value for name, value in sorted(pairs.items()) if name.startswith(_PREFIX)}
