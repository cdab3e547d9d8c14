"""Tables of attribution, weight audit and crosscheck."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich.markup import escape
from rich.table import Table

from md_export.diagnose.attribution.attribute import Attribution, ModuleError
from md_export.diagnose.crosscheck.artifacts import APART_DB, Crosscheck
from md_export.diagnose.crosscheck.operations import PAIR, OperationRow
from md_export.parity.metrics import EXACT_DB
from md_export.parity.weights.audit import AuditResult, ComponentAudit
from md_export.targets import TARGETS


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


_WORST = 10


def crosscheck_tables(found: Crosscheck) -> tuple[Table | str, ...]:
    """Cases, the modules on which the two differ, and the verdict."""
    first, second = found.files
    cases = Table(title=f"{found.component}: {first} ({found.schemes[0]}) and {second} ({found.schemes[1]})")
    for name in ("golden case", f"{first} dB", f"{second} dB", "between them dB"):
        cases.add_column(name, justify="left" if name == "golden case" else "right")
    for row in found.cases:
        cases.add_row(escape(row.case), *map(decibel, (row.first_db, row.second_db, row.between_db)))
    modules = Table(title=f"each module on its own input, furthest apart first; {found.followed}")
    for name in ("module", "class", f"{first} dB", f"{second} dB"):
        modules.add_column(name, justify="right" if name.endswith("dB") else "left", overflow="fold")
    for item in sorted(found.modules, key=lambda item: -abs(item.apart_db))[:_WORST]:
        modules.add_row(escape(item.path), item.kind, decibel(item.first_db), decibel(item.second_db))
    return cases, modules, verdict(found)


def verdict(found: Crosscheck) -> str:
    """Whether they differ by more than rounding, in one sentence."""
    if not found.disagreements:
        return f"{len(found.modules)} modules in both: none is {APART_DB:g} dB worse in one than in the other"
    named = []
    for row in found.disagreements[:_WORST]:
        worse, better = found.files if row.apart_db < 0 else found.files[::-1]
        named.append(f"{row.path} ({row.kind}) is {abs(row.apart_db):.0f} dB worse in {worse} than in {better}")
    return f"beyond rounding, {len(found.disagreements)} of {len(found.modules)} modules: " + "; ".join(named)


def operation_table(rows: Sequence[OperationRow]) -> Table:
    """One row per operation: both runtimes beside float64."""
    first, second = (TARGETS[name].title.partition(" (")[0] for name in PAIR)
    table = Table(title="single operations in float16, beside float64; steps: distances between float16 neighbours")
    for name in ("operation", f"{first} dB", f"{second} dB", f"{first} steps", f"{second} steps", "equal", "apart"):
        table.add_column(name, justify="left" if name == "operation" else "right")
    for row in rows:
        if row.snr_db is None or row.steps is None or row.equal is None or row.apart is None:
            table.add_row(row.name, f"[red]{escape(row.fault)}[/]")
            continue
        figures = [f"{value:.2f}" for value in row.steps]
        table.add_row(row.name, *map(decibel, row.snr_db), *figures, f"{row.equal:.1%}", f"{row.apart:.2f}")
    return table
