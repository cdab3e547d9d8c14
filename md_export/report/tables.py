"""Results in, terminal tables out."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table

from md_export.artifact import Manifest
from md_export.parity.metrics import EXACT_DB
from md_export.parity.verify import ComponentResult, VerifyResult


def console() -> Console:
    """Standard output; wide enough for a table where it is not a terminal."""
    return Console() if sys.stdout.isatty() else Console(width=140)


def parity_table(result: VerifyResult) -> Table:
    """One row per component and one for the picture, each figure beside the recipe's threshold."""
    table = Table(title=f"{result.recipe}: parity on {result.cases} golden cases (worst case of each figure)")
    for name in ("component", "SNR dB", "at least", "PSNR dB", "cosine", "max error", "verdict"):
        table.add_column(name, justify="left" if name in ("component", "verdict") else "right")
    for item in result.components:
        table.add_row(*_component_row(item))
    if result.picture:
        figure = "-" if result.picture.psnr_db is None else decibel(result.picture.psnr_db)
        least, verdict = f"{result.picture.least_psnr_db:g} (PSNR)", _verdict(result.picture.faults)
        table.add_row("picture", "-", least, figure, "-", "-", verdict)
    else:
        table.add_row("picture", "-", "-", "-", "-", "-", "not judged: the export lacks a component")
    return table


def artifact_table(manifest: Manifest) -> Table:
    """One row per artifact: bytes, stored types, time and memory of the worker that made it."""
    table = Table(title=f"{manifest.recipe.name}: artifacts")
    for name in ("file", "KB", "weights stored as", "ops", "seconds", "peak MB", "rewrites"):
        table.add_column(name, justify="left" if name in ("file", "weights stored as", "rewrites") else "right")
    for entry in manifest.artifacts:
        total = sum(entry.stored.values()) or 1
        shares = ", ".join(f"{dtype} {size / total:.0%}" for dtype, size in sorted(entry.stored.items()))
        rewrites = ", ".join(f"{record.name} ×{record.fired}" for record in entry.rewrites) or "-"
        measured = entry.measured
        table.add_row(
            entry.file,
            f"{entry.bytes / 1e3:,.0f}",
            shares,
            str(sum(entry.ops.values())),
            f"{measured.seconds:.1f}",
            f"{measured.peak_resident_bytes / 1e6:,.0f}",
            rewrites,
        )
    return table


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
    return "[red]FAIL[/]: " + "; ".join(faults) if faults else "[green]ok[/]"
