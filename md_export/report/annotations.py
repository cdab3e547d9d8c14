"""Failures as GitHub's workflow commands: a line on the terminal becomes an annotation of the pull request."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

# What ends a command, or one of its properties; the percent sign first, since it begins the others.
_DATA: Final = (("%", "%25"), ("\r", "%0D"), ("\n", "%0A"))
_PROPERTY: Final = (*_DATA, (":", "%3A"), (",", "%2C"))


def error_annotations(title: str, failures: Iterable[str], file: str) -> Iterator[str]:
    """One ``::error`` line for each failure, shown at ``file``, whose path is from the root of the repository."""
    for failure in failures:
        where = f"file={_escaped(file, _PROPERTY)},title={_escaped(title, _PROPERTY)}"
        yield f"::error {where}::{_escaped(failure, _DATA)}"


def _escaped(text: str, table: Iterable[tuple[str, str]]) -> str:
    for character, code in table:
        text = text.replace(character, code)
    return text
