"""Verdicts as Markdown, for a pull request's comment."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from md_export.parity.verify import VerifyResult
from md_export.report.tables import Cells, parity_cells


def markdown_page(results: Sequence[tuple[str, VerifyResult]]) -> str:
    """One heading and parity table for each (name, result), what falls short first."""
    ordered = sorted(results, key=lambda item: item[1].passed)
    return "\n".join(line for name, result in ordered for line in _section(name, result))


def _section(name: str, result: VerifyResult) -> Iterator[str]:
    yield heading(name, result.passed, "verified", "falls short")
    yield ""
    yield from markdown_table(parity_cells(result))
    yield ""


def heading(name: str, passed: bool, good: str, bad: str) -> str:
    """A heading that ends in the verdict."""
    return f"### {safe(name)}: {good if passed else f'**{bad}**'}"


def markdown_table(cells: Cells) -> Iterator[str]:
    """Lines of a pipe table, figures to the right."""
    yield f"| {' | '.join(cells.head)} |"
    yield "|---" + "|---:" * (len(cells.head) - 1) + "|"
    for row in cells.rows:
        yield f"| {' | '.join(map(safe, row))} |"


def safe(text: str) -> str:
    """Text that ends no cell, starts no element and stays on its line."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
