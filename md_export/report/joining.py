"""What joining saved, drawn for a terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich.markup import escape
from rich.table import Table

from md_export.joining import Shared


def shared_table(shared: Iterable[Shared]) -> Table:
    """One row per component: its packages together, and the one that they became."""
    table = Table(title="weights stored once")
    for name in ("component", "apart KB", "joined KB"):
        table.add_column(name, justify="left" if name == "component" else "right")
    for one in shared:
        table.add_row(escape(one.component), f"{one.apart / 1000:,.0f}", f"{one.joined / 1000:,.0f}")
    return table
