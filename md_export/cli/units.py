"""Sizes and times as people write them: ``8G``, ``500MB``; ``30d``, ``12h``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import click

_SIZES: Final = {"K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_AGES: Final = {"M": 60.0, "H": 3600.0, "D": 86400.0, "W": 7 * 86400.0}


def size(text: str) -> int:
    """Bytes; click's BadParameter where it is no size."""
    return _number(text, _SIZES, "B", "a size: write 8G or 500M")


def age(text: str) -> int:
    """Seconds; click's BadParameter where it is no time."""
    return _number(text, _AGES, "", "a time: write 30d, 12h or 2w")


def _number(text: str, units: Mapping[str, float], ending: str, wanted: str) -> int:
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)\s*([a-zA-Z]+)", text)
    unit = units.get(found[2].upper().removesuffix(ending)) if found else None
    if found is None or unit is None or not float(found[1]):
        raise click.BadParameter(f"{text!r:.40} is not {wanted}")
    return int(float(found[1]) * unit)
