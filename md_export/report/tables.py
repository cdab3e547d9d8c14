"""Convert results to tables: cells of plain text, and terminal tables."""

from __future__ import annotations

import getpass
import html
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from io import StringIO
from itertools import chain, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from md_export.parity.metrics import EXACT_DB
from md_export.spec.artifact import ArtifactEntry
from md_export.spec.manifest import Manifest
from md_export.spec.recipe import Recipe
from md_export.system.terminal_text import visible
from md_export.targets.contract import Description

if TYPE_CHECKING:
    from md_export.diagnose.doctor.findings import Diagnosis, Finding
    from md_export.diagnose.inspect import Inspection


# Columns where no terminal says how many it has.
_WIDTH: Final = 140
# Colours by the start of a verdict.
_COLOURS: Final = {
    "green": ("ok",),
    "red": ("FAIL", "failed", "broken"),
    "yellow": ("note",),
    "dim": ("not installed", "not applicable"),
}


class Cells(NamedTuple):
    """A table of plain text: head and rows."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def drawn(
    title: str, head: Sequence[str], rows: Iterable[Sequence[str]], caption: str | None = None, lines: bool = False
) -> Table:
    """Draw plain cells as a table for the terminal, verdicts in colour; ``lines``: separate the rows by lines."""
    caption = caption and escape(visible(caption))
    table = Table(title=escape(visible(title)), caption=caption, show_lines=lines)
    rows = [tuple(map(visible, row)) for row in rows]
    for place, name in enumerate(head):
        right = all(_is_figure(row[place]) for row in rows)
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    for row in rows:
        cells = zip(head, row, strict=True)
        table.add_row(*(_coloured(cell) if name == "verdict" else escape(cell) for name, cell in cells))
    return table


def tables_as_text(tables: Iterable[Table]) -> str:
    """Return tables as plain text, at most 140 columns wide, without a line break at the end."""
    terminal = Console(file=StringIO(), width=_WIDTH, color_system=None, force_terminal=False, force_jupyter=False)
    with terminal.capture() as captured:
        for table in tables:
            terminal.print(table)
    return captured.get().rstrip("\n")


def tables_as_html(tables: Iterable[Table]) -> str:
    """Return tables as HTML ``<table>`` elements, each with its title as caption, for a notebook."""
    return "\n".join(map(_html, tables))


def _html(table: Table) -> str:
    columns = [[column.header, *column.cells] for column in table.columns]
    aligned = [f' style="text-align:{column.justify}"' for column in table.columns]
    lines = [
        "".join(f"<{tag}{style}>{_inner(cell)}</{tag}>" for style, cell in zip(aligned, row, strict=True))
        for tag, row in zip(chain(("th",), repeat("td")), zip(*columns, strict=True), strict=False)
    ]
    rows = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table><caption>{_inner(table.title or '')}</caption>{rows}</table>"


def _inner(cell: object) -> str:
    """Return a cell's text without markup, safe inside an element, its lines kept apart."""
    return html.escape(Text.from_markup(str(cell)).plain).replace("\n", "<br>")


def _is_figure(cell: str) -> bool:
    """Whether a cell may be in a column of figures, which is aligned to the right."""
    return cell[:1] in "0123456789+-" or cell in ("exact", "not finite")


def _coloured(verdict: str) -> str:
    colour = next((colour for colour, words in _COLOURS.items() if verdict.startswith(words)), None)
    return f"[{colour}]{escape(verdict)}[/]" if colour else escape(verdict)


def markdown_row(cells: Iterable[str]) -> str:
    """Return a line of a Markdown table."""
    return f"| {' | '.join(map(safe, cells))} |"


def safe(text: str) -> str:
    """Escape text for a table cell: it cannot end the cell or start an HTML element, and stays on one line."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def said(faults: Sequence[str], brief: bool = False) -> str:
    """Return the text of the column "verdict"; ``brief``: only the start of the first fault, up to a colon."""
    if not faults:
        return "ok"
    return "FAIL: " + (faults[0].partition(": ")[0] if brief else "; ".join(faults))


def decibel(value: float | None) -> str:
    """Format decibels with one decimal; words at the ends of the scale, "-" for None."""
    if value is None:
        return "-"
    if value >= EXACT_DB:
        return "exact"
    return "not finite" if value <= -EXACT_DB else f"{value:.1f}"


def spelled_shape(shape: Sequence[int | None]) -> str:
    """Format a shape as ``1×2×2×12``; "scalar" for a shape without axes."""
    return "×".join(map(str, shape)) or "scalar"


def artifact_table(manifest: Manifest) -> Table:
    """Return a table with one row per artifact: bytes, stored types, and time and memory of its worker."""
    return drawn(f"{manifest.recipe.name}: artifacts", *artifact_cells(manifest))


def artifact_cells(manifest: Manifest) -> Cells:
    """Return the cells of the artifact table."""
    head = ("file", "KB", "weights stored as", "ops", "seconds", "peak MB", "rewrites")
    return Cells(head, tuple(_artifact_row(entry) for entry in manifest.artifacts))


def recipes_table(recipes: Sequence[Recipe]) -> Table:
    """Return one row per recipe: weights, activations, rewrites, and thresholds of components and picture."""
    head = ("recipe", "weights", "activations", "rewrites", "SNR dB", "picture PSNR dB")
    rows = []
    for recipe in recipes:
        schemes, least = recipe.schemes.values(), [one.snr_db for one in recipe.tolerances.values()]
        weights = dict.fromkeys(scheme.weights for scheme in schemes)
        activations = dict.fromkeys(scheme.activations for scheme in schemes)
        words = ", ".join(weights), ", ".join(activations), ", ".join(recipe.rewrites) or "-"
        rows.append((recipe.name, *words, f"{min(least):g}", f"{recipe.picture_psnr_db:g}"))
    return drawn("recipes that ship; print one with md-export recipe show NAME", head, tuple(rows))


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


def console(stderr: bool = False) -> Console:
    """Return a console on standard output or error; without a terminal, it is wide enough for tables."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr) if stream.isatty() else Console(width=_WIDTH, stderr=stderr)


def description_tables(found: Description, title: str) -> tuple[Table, ...]:
    """Return tables of the artifact's interface and metadata for an app, of weights by stored type, and of ops."""
    inside = [
        (label, kind, f"{count:,}")
        for label, counts in (("stored", found.stored), ("ops", found.ops))
        for kind, count in sorted(counts.items(), key=lambda item: -item[1])
    ]
    return (
        drawn(f"{title}: metadata for apps", ("note", "value"), found.notes.items()),
        drawn("contents", ("", "kind", "bytes or number"), inside),
    )


def inspection_tables(inspection: Inspection, title: str, arch: str | None) -> tuple[Table | str, ...]:
    """Return figures per component, a comparison with the paper if it has some, and how multiply-adds are counted."""
    from md_export.diagnose.inspect import CONVENTION, PAPER

    paper = arch if arch is not None and arch in PAPER else inspection.family
    compared = [
        (row.label, f"{row.ours:,.4g}", f"{row.paper:,.4g}", f"{row.percent:+.1f} %")
        for row in inspection.compare(paper)
    ]
    head = ("component", "parameters M", "GMAC", "GMAC w/o padding taps", "conv blocks", "SA", "CA")
    beside = f"beside the paper's {paper} (arXiv 2311.16567)"
    tables = [drawn(beside, ("figure", "here", "paper", "difference"), compared)] if compared else []
    return (drawn(title, head, _figures(inspection)), *tables, f"Convention: {CONVENTION}.")


def _figures(inspection: Inspection) -> Iterator[tuple[str, ...]]:
    for item in (*inspection.components, inspection.whole):
        blocks = (item.conv_blocks, item.self_attentions, item.cross_attentions)
        macs = (f"{item.macs / 1e9:.3f}", f"{item.macs_without_padding / 1e9:.3f}")
        counts = (str(count) if any(blocks) else "-" for count in blocks)
        yield (item.name, f"{item.parameters / 1e6:.2f}", *macs, *counts)


def doctor_table(diagnosis: Diagnosis) -> Table:
    """Return one row per finding."""
    rows = ((item.area, item.what, item.verdict, item.found, item.advice) for item in diagnosis.findings)
    title = f"md-export {diagnosis.md_export} on {diagnosis.system}"
    return drawn(title, ("area", "what", "verdict", "found", "what to do"), rows)


def doctor_text(diagnosis: Diagnosis, home: Path | None = None, user: str | None = None) -> str:
    """Return the findings as text without user names: ``home`` (default: this user's) becomes ``~``."""
    lines = [f"md-export {diagnosis.md_export}", diagnosis.system, *map(_line, diagnosis.findings)]
    return without_names("\n".join(lines), home or Path.home(), user or _user())


def without_names(text: str, home: Path, user: str) -> str:
    """Replace home folders by ``~``, and the user's name in other paths by ``USER``."""
    for folder in {str(home), str(home.resolve())} - {"/", ""}:
        text = re.sub(rf"{re.escape(folder)}(?![\w.-])", "~", text)
    return re.sub(rf"(?<=[/\\]){re.escape(user)}(?![\w.-])", "USER", text) if user else text


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return ""


def _line(item: Finding) -> str:
    advice = f" -> {item.advice}" if item.advice else ""
    return f"{item.area:9}{item.what:20}{item.verdict:14}{item.found}{advice}"
