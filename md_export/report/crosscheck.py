"""A crosscheck as tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from md_export.crosscheck.artifacts import APART_DB, Crosscheck
from md_export.crosscheck.operations import PAIR, OperationRow
from md_export.report.attribute import decibel
from md_export.targets import TARGETS

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
