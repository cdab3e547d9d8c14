"""Names for what a step makes: SHA-256 over everything that it depends on."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

from md_export import __version__
from md_export.files import sha256_of_text

_PACKAGE: Final = Path(__file__).parent.parent
# Code that has no part in what is built; how files lie in the cache is the cache's own schema.
_APART: Final = ("cli", "report", "search", "__pycache__", "_data")


def key_of(content: Mapping[str, Any]) -> str:
    """SHA-256 of plain JSON-ready data; the order of its names does not count."""
    return sha256_of_text(json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False))


def maker() -> dict[str, str]:
    """Who makes things here: md-export, its code (a checkout changes without its version), Python and processor."""
    return {
        "md-export": __version__,
        "code": code_sha256(),
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


@cache
def code_sha256() -> str:
    """SHA-256 over the files of this package that have a part in what is built."""
    digest = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*")):
        name = path.relative_to(_PACKAGE)
        if path.suffix in (".py", ".toml", ".sh") and name.parts[0] not in _APART:
            digest.update(f"{name.as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()
