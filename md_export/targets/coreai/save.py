"""Write a Core AI asset: a folder with the program's bytecode, its hash and the metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from md_export.errors import ConversionError, one_line
from md_export.targets.contract import labelled, notes_among
from md_export.targets.coreai.bindings import VENDOR_ERRORS, operations
from md_export.targets.coreai.constants import name_constants
from md_export.targets.coreai.target import CoreaiModel

_METADATA = "metadata.json"
_CUSTOM = "creatorDefinedMetadata"


def save(model: CoreaiModel, path: Path) -> None:
    """Write ``path``, a folder to create.

    Args:
        model: what :func:`lower` or :func:`quantize` returned.
        path: must end with ``.aimodel``, which Apple's library requires.

    Raises:
        ConversionError: Apple's library cannot write the program.
    """
    write_program(model.program, path, labelled(model.notes))


def write_program(program: Any, path: Path, custom: dict[str, str]) -> None:
    """Write a program with ``custom`` as pairs of its metadata; see :func:`save`.

    The library would store the time, and write keys in an order that changes between runs.
    """
    name_constants(program, operations(program))
    try:
        program.save_asset(path)
    except VENDOR_ERRORS as error:
        cause = error.__cause__ or error
        raise ConversionError(f"{path.name} cannot be written: {one_line(cause)}") from error
    file = path / _METADATA
    content = from_json(file.read_text(encoding="utf-8"))
    del content["creationDate"]
    content |= {_CUSTOM: custom} if custom else {}
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_custom(path: Path) -> dict[str, str]:
    """Return the pairs of an asset's metadata; empty if it has none or they cannot be read."""
    try:
        found = from_json((path / _METADATA).read_text(encoding="utf-8")).get(_CUSTOM, {})
        return {str(name): str(value) for name, value in found.items()}
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}


def read_notes(path: Path) -> dict[str, str]:
    """Return the job's metadata."""
    return notes_among(read_custom(path))
