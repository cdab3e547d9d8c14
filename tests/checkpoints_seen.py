"""Kinds of checkpoints and of wishes that were tried, by the markers of the tests that try them.

    python tests/checkpoints_seen.py docs/checkpoints-seen.md

A test says what it tries with ``@pytest.mark.seen(kind, what is done)``; the table has a row for each.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

TESTS: Final = Path(__file__).parent
HEAD: Final = """# Checkpoints and wishes that were tried

Every row is a test. `python tests/checkpoints_seen.py docs/checkpoints-seen.md` writes this page from the markers of
the tests.

| kind | what is done with it | test |
|---|---|---|
"""
Row = tuple[str, str, str]


def rows() -> list[Row]:
    """Return kind, what is done, and the test's file and name; sorted."""
    files = sorted(TESTS.rglob("test_*.py"))
    return sorted(row for file in files for row in _rows_of(file))


def _rows_of(file: Path) -> Iterator[Row]:
    text = file.read_text(encoding="utf-8")
    if "mark.seen" not in text:
        return
    for node in ast.walk(ast.parse(text)):
        for mark in node.decorator_list if isinstance(node, ast.FunctionDef) else ():
            if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.seen":
                kind, done = (ast.literal_eval(argument) for argument in mark.args)
                yield kind, done, f"`{file.relative_to(TESTS.parent)}` {getattr(node, 'name', '')}"


def page() -> str:
    """Return the page."""
    return HEAD + "".join(f"| {' | '.join(row)} |\n" for row in rows())


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")
