"""Results in, tables out: as cells of plain text, and drawn for a terminal."""

from __future__ import annotations

import sys
from typing import Final, NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from md_export.diagnose.inspect import CONVENTION, PAPER, Inspection
from md_export.parity.metrics import EXACT_DB
from md_export.parity.verdict import ComponentResult, VerifyResult
from md_export.spec.artifact import ArtifactEntry
from md_export.spec.manifest import Manifest
from md_export.targets.contract import Description

_FAIL: Final = "FAIL"


class Cells(NamedTuple):
    """A table as text."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def parity_table(result: VerifyResult) -> Table:
    """One row per component and one for the picture, each figure beside the recipe's threshold."""
    head, rows = parity_cells(result)
    table = Table(title=f"{result.recipe}: parity on {result.cases} golden cases (worst case of each figure)")
    for name in head:
        table.add_column(name, justify="left" if name in ("component", "verdict") else "right")
    for *cells, verdict in rows:
        colour = "red" if verdict.startswith(_FAIL) else "green"
        table.add_row(*map(escape, cells), f"[{colour}]{escape(verdict)}[/]")
    return table


def artifact_table(manifest: Manifest) -> Table:
    """One row per artifact: bytes, stored types, time and memory of the worker that made it."""
    head, rows = artifact_cells(manifest)
    table = Table(title=f"{manifest.recipe.name}: artifacts")
    for name in head:
        table.add_column(name, justify="left" if name in ("file", "weights stored as", "rewrites") else "right")
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def parity_cells(result: VerifyResult) -> Cells:
    """The parity table as plain text."""
    rows = [_component_row(item) for item in result.components]
    if result.picture:
        figure = "-" if result.picture.psnr_db is None else decibel(result.picture.psnr_db)
        least, verdict = f"{result.picture.least_psnr_db:g} (PSNR)", _verdict(result.picture.faults)
        rows.append(("picture", "-", least, figure, "-", "-", verdict))
    else:
        rows.append(("picture", "-", "-", "-", "-", "-", "not judged: the export lacks a component"))
    return Cells(("component", "SNR dB", "at least", "PSNR dB", "cosine", "max error", "verdict"), tuple(rows))


def artifact_cells(manifest: Manifest) -> Cells:
    """The artifact table as plain text."""
    head = ("file", "KB", "weights stored as", "ops", "seconds", "peak MB", "rewrites")
    return Cells(head, tuple(_artifact_row(entry) for entry in manifest.artifacts))


def _artifact_row(entry: ArtifactEntry) -> tuple[str, ...]:
    total = sum(entry.stored.values()) or 1
    shares = ", ".join(f"{dtype} {size / total:.0%}" for dtype, size in sorted(entry.stored.items()))
    rewrites = ", ".join(f"{record.name} ×{record.fired}" for record in entry.rewrites) or "-"
    measured = entry.measured
    return (
        entry.file,
        f"{entry.bytes / 1e3:,.0f}",
        shares,
        str(sum(entry.ops.values())),
        f"{measured.seconds:.1f}",
        f"{measured.peak_resident_bytes / 1e6:,.0f}",
        rewrites,
    )


def decibel(value: float) -> str:
    """A figure in dB; equality bit for bit has no finite one."""
    return "exact" if value >= EXACT_DB else f"{value:.1f}"


def _component_row(item: ComponentResult) -> tuple[str, ...]:
    least = f"{item.tolerance.snr_db:g}"
    if item.parity is None:
        return (item.component, "-", least, "-", "-", "-", _verdict(item.faults))
    parity = item.parity
    figures = (decibel(parity.psnr_db), f"{parity.cosine:.6f}", f"{parity.max_abs:.2e}")
    return (item.component, decibel(parity.snr_db), least, *figures, _verdict(item.faults))


def _verdict(faults: tuple[str, ...]) -> str:
    return f"{_FAIL}: " + "; ".join(faults) if faults else "ok"


def console(stderr: bool = False) -> Console:
    """Standard output or error; wide enough for a table where it is not a terminal."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr) if stream.isatty() else Console(width=140, stderr=stderr)


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
