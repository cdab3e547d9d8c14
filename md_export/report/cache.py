"""The cache's entries as a table."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from md_export.matrix.entry import Listed


def cache_table(listed: Sequence[Listed], root: str) -> Table:
    """One row for each entry, and their bytes together in the title."""
    total = sum(one.entry.bytes for one in listed) / 1e6
    table = Table(title=escape(f"{root}: {len(listed)} entries, {total:,.1f} MB"))
    for name in ("key", "made", "files", "MB", "last used"):
        table.add_column(name, justify="right" if name in ("files", "MB") else "left")
    for one in listed:
        entry, used = one.entry, time.strftime("%Y-%m-%d %H:%M", time.localtime(one.used))
        table.add_row(entry.key[:12], escape(entry.label), str(len(entry.files)), f"{entry.bytes / 1e6:,.1f}", used)
    return table
