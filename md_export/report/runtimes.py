"""What other runtimes make of a TFLite export, as terminal tables."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from md_export.parity.runtimes.verify import RuntimesResult
from md_export.report.tables import decibel


def runtimes_tables(result: RuntimesResult) -> tuple[Table, ...]:
    """Figures of each component in each set of kernels; then the ops to blame, if there are any."""
    tables = (_figures(result),)
    return (*tables, _findings(result)) if any(item.findings for item in result.verdicts) else tables


def _figures(result: RuntimesResult) -> Table:
    table = Table(title=f"{result.recipe}: other runtimes on {result.cases} golden cases (worst case)")
    for name in ("component", "runtime", "kernels", "SNR dB", "against LiteRT", "at least", "verdict"):
        table.add_column(name, justify="right" if name in ("SNR dB", "against LiteRT", "at least") else "left")
    for item in result.verdicts:
        table.add_row(
            item.component,
            item.runtime,
            item.kernels,
            "-" if item.parity is None else decibel(item.parity.snr_db),
            "-" if item.agreement_db is None else decibel(item.agreement_db),
            f"{item.tolerance.snr_db:g}",
            f"[red]FAIL[/]: {escape(item.faults[0])}" if item.faults else "[green]ok[/]",
        )
    return table


def _findings(result: RuntimesResult) -> Table:
    table = Table(title="the same inputs, other results than LiteRT with XNNPACK", show_lines=True)
    for name in ("component", "runtime", "op", "module and tensor", "shape", "SNR dB"):
        table.add_column(name, overflow="fold")
    for item in result.verdicts:
        for found in item.findings:
            shape = "×".join(str(size) for size in found.shape)
            where = f"{found.module}\n{found.tensor}"
            table.add_row(item.component, item.runtime, found.operator, where, shape, decibel(found.snr_db))
    return table
