"""Attribution as tables for the terminal."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from md_export.parity.metrics import EXACT_DB
from md_export.parity.modules.attribute import Attribution, ModuleError


def attribution_tables(found: Attribution) -> tuple[Table | str, ...]:
    """Hops, the module to blame, the worst modules, and what to change."""
    return (hop_table(found), verdict_line(found), module_table(found), *(f"→ {line}" for line in found.advice))


def hop_table(found: Attribution) -> Table:
    """One row per hop from the checkpoint to the runtime."""
    table = Table(title=f"{found.file}: hop by hop on {found.case}")
    for name in ("hop", "what", "SNR dB", "at least"):
        table.add_column(name, justify="right" if name in ("SNR dB", "at least") else "left")
    for hop in found.hops:
        colour = "green" if hop.passed else "red"
        figure = escape(hop.failure) if hop.failure else decibel(hop.snr_db)
        table.add_row(hop.name, escape(hop.what), f"[{colour}]{figure}[/]", f"{hop.least_snr_db:g}")
    return table


def verdict_line(found: Attribution) -> str:
    """Which module, in one sentence."""
    seen = f"{found.matched} of {found.leaves} leaf modules seen inside {found.file}"
    if found.first is None:
        return f"no module stands out; {seen}"
    first = found.first
    return (
        f"first to diverge: {name_of(first)} ({first.kind}), {decibel(first.local_snr_db)} dB on its own input, "
        f"{decibel(first.cumulative_snr_db)} dB from torch; {seen}"
    )


def module_table(found: Attribution) -> Table:
    """The worst modules by local error."""
    table = Table(title="worst by local error: each module run on the artifact's own input")
    for name in ("module", "class", "local dB", "cumulative dB", "output dB with it alone"):
        table.add_column(name, justify="right" if "dB" in name else "left", overflow="fold")
    for item in found.worst:
        alone = "" if item.alone_snr_db is None else decibel(item.alone_snr_db)
        mark = "[red]" if item == found.first else ""
        table.add_row(
            f"{mark}{escape(name_of(item))}",
            item.kind,
            decibel(item.local_snr_db),
            decibel(item.cumulative_snr_db),
            alone,
        )
    return table


def name_of(module: ModuleError) -> str:
    """Its path; words for the component itself."""
    return module.path or "(the component itself)"


def decibel(value: float) -> str:
    """One decimal; words at the ends of the scale."""
    if value >= EXACT_DB:
        return "exact"
    return "not finite" if value <= -EXACT_DB else f"{value:.1f}"
