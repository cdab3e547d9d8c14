"""Tables of attribution, weight audit, crosscheck and the self-test of verification."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Final

from rich.table import Table

from md_export.diagnose.attribution.attribute import Attribution, ModuleError
from md_export.diagnose.crosscheck.artifacts import APART_DB, Crosscheck
from md_export.diagnose.crosscheck.operations import PAIR, OperationRow
from md_export.parity.selftest.run import Row, SelfTest
from md_export.parity.selftest.table import Hashes
from md_export.parity.weights.audit import AuditResult, ComponentAudit
from md_export.report.tables import Cells, decibel, drawn, said, spelled_shape
from md_export.targets import TARGETS


def attribution_tables(found: Attribution) -> tuple[Table | str, ...]:
    """Return the hops, the module to blame, the worst modules, and the advice."""
    hops = drawn(f"{found.file}: hop by hop on {found.case}", *hop_cells(found))
    modules = drawn("worst by local error: each module run on the artifact's own input", *module_cells(found))
    return (hops, verdict_line(found), modules, *(f"→ {line}" for line in found.advice))


def hop_cells(found: Attribution) -> Cells:
    """Return one row per hop from the checkpoint to the runtime."""
    rows = []
    for hop in found.hops:
        figure, verdict = hop.failure or decibel(hop.snr_db), "ok" if hop.passed else "FAIL"
        rows.append((hop.name, hop.what, figure, f"{hop.least_snr_db:g}", verdict))
    return Cells(("hop", "what", "SNR dB", "at least", "verdict"), tuple(rows))


def module_cells(found: Attribution) -> Cells:
    """Return one row per module, worst local error first."""
    rows = (
        (name_of(item), item.kind, *map(decibel, (item.local_snr_db, item.cumulative_snr_db, item.alone_snr_db)))
        for item in found.worst
    )
    return Cells(("module", "class", "local dB", "cumulative dB", "output dB with it alone"), tuple(rows))


def verdict_line(found: Attribution) -> str:
    """Name the module to blame in one sentence."""
    seen = f"{found.matched} of {found.leaves} leaf modules seen inside {found.file}"
    if found.first is None:
        return f"no module stands out; {seen}"
    first = found.first
    return (
        f"first to diverge: {name_of(first)} ({first.kind}), {decibel(first.local_snr_db)} dB on its own input, "
        f"{decibel(first.cumulative_snr_db)} dB from torch; {seen}"
    )


def name_of(module: ModuleError) -> str:
    """Return the module's path, or a text for the component itself."""
    return module.path or "(the component itself)"


# Most unmatched constants are sizes, axes and scales of activations; small ones are summed.
_SHOWN_BYTES: Final = 64


def audit_table(result: AuditResult) -> Table:
    """Return one row per component: requested types, stored types, and the proven share."""
    head = ("component", "requested", "stored so", "stored as", "KB", "proven", "folded", "missing", "verdict")
    title = f"{result.recipe}: stored weights against the checkpoint, shares of bytes"
    return drawn(title, head, map(_audited, result.components))


def _audited(item: ComponentAudit) -> tuple[str, ...]:
    largest = sorted(item.stored.items(), key=lambda pair: -pair[1])
    more = f" and {len(item.faults) - 1} more" if len(item.faults) > 1 else ""
    return (
        item.component,
        item.requested,
        f"{item.as_requested / max(1, item.promised):.1%}",
        ", ".join(f"{dtype} {size / max(1, item.total):.1%}" for dtype, size in largest),
        f"{item.total / 1e3:,.0f}",
        f"{item.proven_share:.2%}",
        str(len(item.folded)),
        str(len(item.missing)),
        said(item.faults[:1]) + more,
    )


def unmatched_table(result: AuditResult) -> Table:
    """Return the constants that a converter derived or that are unknown, the large ones by name."""
    head = ("component", "constant", "type", "shape", "bytes")
    rows = [row for item in result.components for row in _unmatched(item)]
    return drawn("constants that match no tensor of the checkpoint", head, rows)


def _unmatched(item: ComponentAudit) -> Iterator[tuple[str, ...]]:
    large = [constant for constant in item.unmatched if constant.bytes >= _SHOWN_BYTES]
    for constant in large:
        yield (item.component, constant.name, constant.dtype, spelled_shape(constant.shape), f"{constant.bytes:,}")
    small = item.unmatched[len(large) :]
    if small:
        label = f"{len(small)} of less than {_SHOWN_BYTES} bytes each: sizes, axes, scales of activations"
        yield (item.component, label, "", "", f"{sum(constant.bytes for constant in small):,}")


_WORST = 10


def crosscheck_tables(found: Crosscheck) -> tuple[Table | str, ...]:
    """Return the cases, the modules on which the two artifacts differ, and the verdict."""
    first, second = found.files
    cases = drawn(
        f"{found.component}: {first} ({found.schemes[0]}) and {second} ({found.schemes[1]})",
        ("golden case", f"{first} dB", f"{second} dB", "between them dB"),
        ((row.case, *map(decibel, (row.first_db, row.second_db, row.between_db))) for row in found.cases),
    )
    worst = sorted(found.modules, key=lambda item: -abs(item.apart_db))[:_WORST]
    modules = drawn(
        f"each module on its own input, furthest apart first; {found.followed}",
        ("module", "class", f"{first} dB", f"{second} dB"),
        ((item.path, item.kind, decibel(item.first_db), decibel(item.second_db)) for item in worst),
    )
    return cases, modules, verdict(found)


def verdict(found: Crosscheck) -> str:
    """State in one sentence whether the two artifacts differ by more than rounding."""
    if not found.disagreements:
        return f"{len(found.modules)} modules in both: none is {APART_DB:g} dB worse in one than in the other"
    named = []
    for row in found.disagreements[:_WORST]:
        worse, better = found.files if row.apart_db < 0 else found.files[::-1]
        named.append(f"{row.path} ({row.kind}) is {abs(row.apart_db):.0f} dB worse in {worse} than in {better}")
    return f"beyond rounding, {len(found.disagreements)} of {len(found.modules)} modules: " + "; ".join(named)


def operation_table(rows: Sequence[OperationRow]) -> Table:
    """Return one row per operation: both runtimes against float64."""
    first, second = (TARGETS[name].title.partition(" (")[0] for name in PAIR)
    figures = (f"{first} dB", f"{second} dB", f"{first} steps", f"{second} steps", "equal", "apart")
    title = "single operations in float16, beside float64; steps: distances between float16 neighbours"
    return drawn(title, ("operation", *figures, "verdict"), map(_operation, rows))


def _operation(row: OperationRow) -> tuple[str, ...]:
    if row.snr_db is None or row.steps is None or row.equal is None or row.apart is None:
        return (row.name, *[""] * 6, f"FAIL: {row.fault}")
    figures = (*map(decibel, row.snr_db), *(f"{value:.2f}" for value in row.steps))
    return (row.name, *figures, f"{row.equal:.1%}", f"{row.apart:.2f}", "ok")


def self_test_table(result: SelfTest) -> Table:
    """Return one row per mutation with the check that noticed it, for each state of the hashes."""
    rejected, skipped = (sum(row.verdict == name for row in result.rows) for name in ("rejected", "not applicable"))
    title = f"{result.recipe}: {rejected} rejected, {skipped} not applicable, {result.seconds:.0f} s"
    tried = groupby(result.rows, key=lambda row: (row.mutation, row.of))
    return drawn(
        title, ("mutation", "of", "component", *Hashes, "verdict"), (_mutation(list(rows)) for _, rows in tried)
    )


def _mutation(rows: list[Row]) -> tuple[str, ...]:
    first = rows[0]
    about = (first.mutation, first.of, first.component)
    if all(row.verdict == "not applicable" for row in rows):
        return (*about, *("" for _ in Hashes), f"not applicable: {first.said}")
    by_hashes = {row.hashes: _noticed(row) for row in rows} if first.expected else {Hashes.KEPT: _noticed(first)}
    verdict = "ok" if all(row.passed for row in rows) else "FAIL"
    return (*about, *(by_hashes.get(hashes, "") for hashes in Hashes), verdict)


def _noticed(row: Row) -> str:
    if row.passed:
        return row.expected or row.verdict
    noticed = ", ".join(row.caught_by) or "nothing"
    return f"{row.verdict}: {noticed} noticed" + (f", {row.expected} was to" if row.expected else "")
