"""Two exports side by side, as terminal tables, Markdown and JUnit."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from md_export.diagnose.compare import Change, ExportComparison
from md_export.parity.metrics import EXACT_DB
from md_export.report.ci import Suite, heading, junit_of, markdown_table, safe
from md_export.report.tables import Cells, drawn


def comparison_tables(result: ExportComparison) -> Iterator[Table | str]:
    """Every figure with its budget; what changed inside; how far the pictures are from each other."""
    yield drawn(_title(result), *change_cells(result))
    if result.recounts:
        yield drawn("what changed inside", *recount_cells(result))
    yield from _remarks(result)


def comparison_markdown(result: ExportComparison) -> str:
    """The same for a pull request's comment; what changed inside is folded away."""
    return "\n".join(_markdown(result))


def comparison_junit(result: ExportComparison) -> str:
    """One case per figure, and one for what verification says of the new export."""
    cases = [(f"{item.component}: {item.figure}", _faults(item)) for item in result.changes]
    return junit_of([Suite("regression", f"compare.{result.new}", (("verification", result.faults), *cases))])


def change_cells(result: ExportComparison) -> Cells:
    """One row per figure."""
    head = ("component", "figure", "old", "new", "change", "budget", "verdict")
    return Cells(head, tuple((item.component, item.figure, *item.spelled, _verdict(item)) for item in result.changes))


def recount_cells(result: ExportComparison) -> Cells:
    """One row for each stored type, kind of operation or rule whose count changed."""
    rows = ((one.component, one.what, one.kind, f"{one.old:,}", f"{one.new:,}") for one in result.recounts)
    return Cells(("component", "what", "kind", "old", "new"), tuple(rows))


def _title(result: ExportComparison) -> str:
    recipes = result.new if result.old == result.new else f"{result.old} → {result.new}"
    return f"{result.target}, {recipes}: new against old"


def _verdict(item: Change) -> str:
    return "ok" if item.within else "FAIL"


def _faults(item: Change) -> tuple[str, ...]:
    return (item.fault,) if item.fault else ()


def _remarks(result: ExportComparison) -> Iterator[str]:
    if result.picture_psnr_db is not None:
        exact = result.picture_psnr_db >= EXACT_DB
        figure = "the same bit for bit, all" if exact else f"{result.picture_psnr_db:.1f} dB PSNR, the worst"
        yield f"pictures, new against old: {figure} of {result.pictures}"
    if not result.same_checkpoint:
        yield "the checkpoint changed: each export is judged on its own golden cases"
    yield from (f"NEW falls short by itself: {fault}" for fault in result.faults)


def _markdown(result: ExportComparison) -> Iterator[str]:
    yield heading(_title(result), not result.failures, "within the budget", "past the budget")
    yield ""
    yield from markdown_table(change_cells(result))
    yield ""
    for line in _remarks(result):
        yield f"- {safe(line)}"
    if result.recounts:
        yield ""
        yield "<details><summary>What changed inside</summary>"
        yield ""
        yield from markdown_table(recount_cells(result))
        yield ""
        yield "</details>"
    yield ""
