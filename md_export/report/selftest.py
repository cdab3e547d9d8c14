"""The gate's self-test as a table."""

from __future__ import annotations

from itertools import groupby
from typing import Final

from rich.markup import escape
from rich.table import Table

from md_export.parity.selftest.command import SelfTest
from md_export.parity.selftest.mutation import Hashes
from md_export.parity.selftest.run import Row

_HEAD: Final = ("mutation", "of", "component", *Hashes)


def self_test_table(result: SelfTest) -> Table:
    """One row per mutation: for each state of the hashes that was tried, the check that noticed."""
    rejected, skipped = (sum(row.verdict == name for row in result.rows) for name in ("rejected", "not applicable"))
    table = Table(title=f"{result.recipe}: {rejected} rejected, {skipped} not applicable, {result.seconds:.0f} s")
    for name in _HEAD:
        table.add_column(name, no_wrap=name == _HEAD[0])
    for cells, colour in _mutations(result):
        table.add_row(*(f"[{colour}]{escape(cell)}[/]" if cell else "" for cell in cells))
    return table


def _mutations(result: SelfTest) -> list[tuple[tuple[str, ...], str]]:
    return [_mutation(list(rows)) for _, rows in groupby(result.rows, key=lambda row: (row.mutation, row.of))]


def _mutation(rows: list[Row]) -> tuple[tuple[str, ...], str]:
    """Cells and their colour."""
    first = rows[0]
    about = (first.mutation, first.of, first.component)
    if all(row.verdict == "not applicable" for row in rows):
        return (*about, f"not applicable: {first.said}"), "dim"
    by_hashes = {row.hashes: _noticed(row) for row in rows} if first.expected else {Hashes.KEPT: _noticed(first)}
    cells = (*about, *(by_hashes.get(hashes, "") for hashes in Hashes))
    return cells, "green" if all(row.passed for row in rows) else "red"


def _noticed(row: Row) -> str:
    if row.passed:
        return row.expected or row.verdict
    noticed = ", ".join(row.caught_by) or "nothing"
    return f"{row.verdict}: {noticed} noticed" + (f", {row.expected} was to" if row.expected else "")
