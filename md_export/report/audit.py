"""The audit of stored weights as tables."""

from __future__ import annotations

from typing import Final

from rich.markup import escape
from rich.table import Table

from md_export.parity.stored.audit import AuditResult
from md_export.parity.stored.ledger import ComponentAudit

# Constants that match nothing are mostly sizes, axes and scales of activations; those are summed.
_SHOWN_BYTES: Final = 64
_LEFT: Final = ("component", "stored as", "verdict", "constant", "type", "shape")


def audit_table(result: AuditResult) -> Table:
    """One row per component: what was requested, what is stored, and how much of it is proven."""
    head = ("component", "requested", "stored so", "stored as", "KB", "proven", "folded", "missing", "verdict")
    table = _table(f"{result.recipe}: stored weights against the checkpoint, shares of bytes", head)
    for item in result.components:
        table.add_row(*map(escape, _figures(item)), _verdict(item))
    return table


def unmatched_table(result: AuditResult) -> Table:
    """Constants that a converter derived, or that are unknown: the large ones by name."""
    table = _table(
        "constants that match no tensor of the checkpoint", ("component", "constant", "type", "shape", "bytes")
    )
    for item in result.components:
        large = [constant for constant in item.unmatched if constant.bytes >= _SHOWN_BYTES]
        for constant in large:
            shape = "×".join(map(str, constant.shape)) or "scalar"
            table.add_row(item.component, escape(constant.name), constant.dtype, shape, f"{constant.bytes:,}")
        small = item.unmatched[len(large) :]
        if small:
            label = f"{len(small)} of less than {_SHOWN_BYTES} bytes each: sizes, axes, scales of activations"
            table.add_row(item.component, label, "", "", f"{sum(constant.bytes for constant in small):,}")
    return table


def _figures(item: ComponentAudit) -> tuple[str, ...]:
    shares = ", ".join(
        f"{dtype} {size / max(1, item.total):.1%}"
        for dtype, size in sorted(item.stored.items(), key=lambda pair: -pair[1])
    )
    return (
        item.component,
        item.requested,
        f"{item.as_requested / max(1, item.promised):.1%}",
        shares,
        f"{item.total / 1e3:,.0f}",
        f"{item.proven_share:.2%}",
        str(len(item.folded)),
        str(len(item.missing)),
    )


def _verdict(item: ComponentAudit) -> str:
    if not item.faults:
        return "[green]ok[/]"
    more = f" and {len(item.faults) - 1} more" if len(item.faults) > 1 else ""
    return f"[red]{escape(f'FAIL: {item.faults[0]}{more}')}[/]"


def _table(title: str, head: tuple[str, ...]) -> Table:
    table = Table(title=title)
    for name in head:
        table.add_column(name, justify="left" if name in _LEFT else "right")
    return table
