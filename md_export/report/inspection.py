"""The figures of ``md-export inspect`` as terminal tables."""

from __future__ import annotations

from rich.table import Table

from md_export.inspection import CONVENTION, PAPER, Inspection


def inspection_tables(inspection: Inspection, title: str, arch: str | None) -> tuple[Table | str, ...]:
    """Figures per component, the paper's beside ours, and how multiply-adds are counted."""
    return (_figures(inspection, title), _comparison(inspection, arch), f"Convention: {CONVENTION}.")


def _figures(inspection: Inspection, title: str) -> Table:
    table = Table(title=title)
    for name in ("component", "parameters M", "GMAC", "GMAC w/o padding taps", "conv blocks", "SA", "CA"):
        table.add_column(name, justify="left" if name == "component" else "right")
    for item in (*inspection.components, inspection.whole):
        blocks = (item.conv_blocks, item.self_attentions, item.cross_attentions)
        table.add_row(
            item.name,
            f"{item.parameters / 1e6:.2f}",
            f"{item.macs / 1e9:.3f}",
            f"{item.macs_without_padding / 1e9:.3f}",
            *(str(count) if any(blocks) else "-" for count in blocks),
        )
    return table


def _comparison(inspection: Inspection, arch: str | None) -> Table:
    paper = arch if arch is not None and arch in PAPER else inspection.family
    table = Table(title=f"beside the paper's {paper} (arXiv 2311.16567)")
    for name in ("figure", "here", "paper", "difference"):
        table.add_column(name, justify="left" if name == "figure" else "right")
    for row in inspection.compare(paper):
        table.add_row(row.label, f"{row.ours:,.4g}", f"{row.paper:,.4g}", f"{row.percent:+.1f} %")
    return table
