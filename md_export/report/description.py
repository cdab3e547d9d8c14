"""What lies in one artifact, as terminal tables."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from md_export.targets.contract import Description


def description_tables(found: Description, title: str) -> tuple[Table, ...]:
    """What the artifact tells an app; then weights by stored type, and operations."""
    counted = {"stored": found.stored, "ops": found.ops}
    notes = Table("note", "value", title=f"{escape(title)}: what it tells an app")
    for name, value in found.notes.items():
        notes.add_row(escape(name), escape(value))
    inside = Table(title="what it holds")
    for column in ("", "kind", "bytes or number"):
        inside.add_column(column, justify="right" if column.startswith("bytes") else "left")
    for label, counts in counted.items():
        for kind, count in sorted(counts.items(), key=lambda item: -item[1]):
            inside.add_row(label, escape(kind), f"{count:,}")
    return notes, inside
