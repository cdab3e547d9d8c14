"""Show lint reports as tables for the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from rich.table import Table

from md_export.report.tables import drawn, markdown_row
from md_export.targets.lint.report import Figures, Float16Bound, Hazard, HazardRule, LintReport, Rule, worst_op
from md_export.targets.lint.rules import FaultFile, KnownFault

_SHOWN: Final = 10
_Choice = Callable[[Float16Bound], Figures | None]
PRECISIONS: Final[dict[str, _Choice]] = {
    "default: products added in float16": lambda bound: bound.default,
    "FP16_WITH_FP32_ACCUM: added in float32": lambda bound: bound.float32_sums,
    "every sum in float16, means and softmax too": lambda bound: bound.float16_sums,
}
LEGEND: Final = (
    "Measured: magnitudes, in float32, and what is emulated. Bounded: errors in dB, each of one op alone: worst is a "
    "bound; probable is the size of one that holds with high probability; expected is what independent roundings make."
)


def bound_tables(report: LintReport) -> Iterator[Table | str]:
    """Yield a table by precision, a table of the ops with a finding, and explanations of the findings."""
    bounds = report.bounds or ()
    yield _precisions(report, bounds)
    if any(bound.rules for bound in bounds):
        yield _ops(report, bounds)
    yield from _findings(report, bounds)
    if report.emulated_db is not None:
        yield f"{report.file}: {emulated(report.emulated_db, report.budget_db)}"
    yield LEGEND


def emulated(found_db: float, budget_db: float | None) -> str:
    """Return a line on the SNR of the whole artifact emulated with float16 values, compared with the budget."""
    if found_db < 0:
        return "emulated with float16 values and float32 sums: its outputs are not finite, or are lost"
    verdict = "" if budget_db is None else f", {'within' if found_db >= budget_db else 'NOT within'} {budget_db:g} dB"
    return f"emulated as a whole, float16 values and float32 sums: {found_db:.1f} dB{verdict}"


def _precisions(report: LintReport, bounds: tuple[Float16Bound, ...]) -> Table:
    largest = max((bound.largest for bound in bounds), default=0.0)
    title = (
        f"{report.file}: float16 on a phone, bounded from {report.cases} sets of inputs; "
        f"{len(bounds)} values, the largest {largest:.4g}"
    )
    rows = []
    for precision, choice in PRECISIONS.items():
        known = [figures for bound in bounds if (figures := choice(bound)) is not None]
        below = sum(figures.expected < (report.budget_db or 0.0) for figures in known)
        worst = worst_op(bounds, choice)
        where = f"{worst.kind} {worst.module}" if worst else "-"
        rows.append((precision, str(len(known)), str(below), _triple(worst, choice), where))
    head = ("precision", "ops with sums", f"expected below {report.budget_db:g} dB", "least dB", "where")
    return drawn(title, head, rows)


def _ops(report: LintReport, bounds: tuple[Float16Bound, ...]) -> Table:
    found = [bound for bound in bounds if bound.rules]
    rows, order = [], [rule.id for rule in report.hazard_rules]
    for bound in sorted(found, key=lambda bound: _urgency(bound, order))[:_SHOWN]:
        figures = [_triple(bound, choice) for choice in list(PRECISIONS.values())[:2]]
        sizes = (f"{bound.largest:.4g}", str(bound.terms or "-"), f"{bound.partial_sum:.4g}")
        rows.append((bound.kind, bound.module or bound.name, *sizes, *figures, ", ".join(bound.rules)))
    title = f"{report.file}: {len(found)} ops with a finding, the worst {_SHOWN}"
    head = ("kind", "module", "largest", "terms", "sum |terms|", "default dB", "float32 sums dB", "finding")
    return drawn(title, head, rows)


def _urgency(bound: Float16Bound, order: Sequence[str]) -> tuple[int, float]:
    by_rule = min(order.index(name) for name in bound.rules)
    float32 = bound.rules == ("loses",) and bound.float32_sums
    figures = float32 or bound.default
    return ({"loses": 2, "loses-by-default": 3}.get(order[by_rule], by_rule), figures.expected if figures else 0.0)


def _triple(bound: Float16Bound | None, choice: _Choice) -> str:
    """Format three bounds in dB as ``worst / probable / expected``."""
    figures = choice(bound) if bound else None
    return f"{figures.worst:.0f} / {figures.probable:.0f} / {figures.expected:.0f}" if figures else "-"


_WORST: Final = 10
CAUTION: Final = "Advice from known rules; only a device shows where an operation really runs."


def lint_tables(reports: Iterable[LintReport]) -> Iterator[Table | str]:
    """Yield known faults and a summary of all packages; rules, worst operations, float16 results of each; sources."""
    reports = tuple(reports)
    yield from known_fault_lines(reports)
    yield _summary(reports)
    for report in reports:
        yield _rules(report)
        if report.worst():
            yield _worst(report)
        if report.hazards is not None:
            yield _hazards(report)
            yield from _findings(report, report.hazards)
        if report.bounds is not None:
            yield from bound_tables(report)
    yield from _sources(reports)
    yield CAUTION


def known_fault_lines(reports: Iterable[LintReport]) -> Iterator[str]:
    """Yield, for each artifact, the runtimes on which it is safe and the faults of others; then faults of any graph."""
    known = [(report.file, report.known) for report in reports if report.known]
    yield from (f"{file}: {line}" for file, found in known for line in found.lines())
    notes = dict.fromkeys((found.runtime, note) for _, found in known for note in found.notes)
    yield from (
        f"{runtime} {note.span}, any graph: {note.title}; {note.remedy}; {note.source}" for runtime, note in notes
    )


def fault_page(files: Iterable[FaultFile]) -> str:
    """Return the known faults as tables in Markdown."""
    head = ("fault", "versions", "backends and devices", "effect", "confidence", "instead", "source")
    tables = []
    for file in files:
        rows = [head, ("---",) * len(head), *map(_fault_cells, file.fault)]
        tables.append(f"**{file.runtime}**\n\n" + "\n".join(map(markdown_row, rows)))
    return "\n\n".join(tables)


def _fault_cells(fault: KnownFault) -> tuple[str, ...]:
    title = fault.title if fault.when.given() else f"any graph: {fault.title}"
    where = ", ".join((*fault.backends, *fault.devices))
    label = fault.source.rpartition("/")[2] if "/issues/" in fault.source or "/pull/" in fault.source else "source"
    return (title, fault.span, where, fault.effect, fault.confidence, fault.remedy, f"[{label}]({fault.source})")


def rule_table(rules: Iterable[Rule], hazards: Iterable[HazardRule], version: int) -> Table:
    """Return a table of all rules in a rule file."""
    rows: list[tuple[str, ...]] = []
    for rule in rules:
        systems = f"{rule.since or ''}…{rule.until or ''}" if rule.since or rule.until else "all"
        rows.append((rule.id, rule.verdict, rule.confidence, systems, rule.title, _advice(rule)))
    rows += [(item.id, item.grade, item.confidence, "all", item.title, item.advice) for item in hazards]
    head = ("rule", "verdict", "confidence", "systems", "says", "what to do")
    return drawn(f"rules, version {version}", head, rows)


def source_lines(rules: Iterable[Rule | HazardRule]) -> Iterator[str]:
    """Return one line for each source page, with the rules based on it."""
    pages: dict[str, list[str]] = {}
    for rule in rules:
        names = pages.setdefault(rule.source, [])
        if rule.id not in names:
            names.append(rule.id)
    return (f"{', '.join(names)}: {page}" for page, names in pages.items())


def _summary(reports: tuple[LintReport, ...]) -> Table:
    rows = []
    for report in reports:
        verdicts = (str(report.count(verdict)) for verdict in ("likely", "unknown", "unlikely"))
        remarks = "; ".join(report.rule(name).title for name in report.remarks) or "-"
        total, layout = str(len(report.ops)), _kilobytes(report.layout_bytes)
        rows.append((report.file, report.system, total, *verdicts, layout, remarks))
    engines = " and ".join(sorted({report.engine for report in reports}))
    head = ("package", "for", "operations", "likely", "unknown", "unlikely", "layout KB", "remarks")
    return drawn(f"{engines}: verdicts by rule, not by measurement", head, rows)


def _rules(report: LintReport) -> Table:
    rows: list[tuple[str, ...]] = []
    for rule in report.rules:
        ops = [op for op in report.ops if rule.id in op.rules]
        counted = (str(len(ops)), _kilobytes(sum(op.bytes for op in ops)))
        rows.append((rule.id, rule.verdict, *counted, rule.confidence, rule.title, _advice(rule)))
    silent = sum(not op.rules for op in report.ops)
    if silent:
        rows.append(("-", "unknown", str(silent), "", "", "no rule covers these kinds", "-"))
    head = ("rule", "verdict", "operations", "KB", "confidence", "says", "what to do")
    return drawn(f"{report.file}: rules that fit", head, rows)


def _worst(report: LintReport) -> Table:
    rows = [
        (op.name, op.kind, op.module or "-", op.verdict, rule.id, _kilobytes(op.bytes), _advice(rule))
        for op in report.worst(_WORST)
        for rule in (report.gravest(op),)
    ]
    head = ("operation", "kind", "module", "verdict", "rule", "KB", "what to do")
    return drawn(f"{report.file}: the worst {_WORST}", head, rows)


def _hazards(report: LintReport) -> Table:
    """Return a table of the worst float16 values: by number of overflows, then by magnitude."""
    hazards = report.hazards or ()
    faults = sum("overflow" in item.rules for item in hazards)
    title = f"{report.file}: {len(hazards)} float16 values on real activations, {faults} overflow"
    head = ("operation", "kind", "module", "largest", "smallest", "overflow", "flushed", "subnormal", "finding")
    worst = sorted(hazards, key=lambda item: (-item.overflows, -item.largest))[:_WORST]
    return drawn(title, head, map(_hazard_cells, worst))


def _hazard_cells(item: Hazard) -> tuple[str, ...]:
    count = max(item.count, 1)
    shares = (f"{part / count:.2%}" for part in (item.overflows, item.flushed, item.subnormal))
    figures = (f"{item.largest:.4g}", f"{item.smallest:.2g}", *shares)
    return (item.name, item.kind, item.module or "-", *figures, ", ".join(item.rules) or "-")


def _findings(report: LintReport, values: Sequence[Hazard | Float16Bound]) -> Iterator[str]:
    """Yield what each finding means, the number of values that have it, and advice for each kind of operation."""
    for rule in report.hazard_rules:
        kinds = Counter(value.kind for value in values if rule.id in value.rules)
        if kinds:
            yield f"{rule.id} ({rule.grade}, {rule.confidence}; found in {kinds.total()}): {rule.title}"
        for advice in dict.fromkeys(map(rule.advice_for, kinds)):
            about = ", ".join(f"{count} {kind}" for kind, count in kinds.items() if rule.advice_for(kind) == advice)
            yield f"  {about}: {advice}"


def _sources(reports: tuple[LintReport, ...]) -> Iterator[str]:
    said = {name for report in reports for item in report.hazards or report.bounds or () for name in item.rules}
    hazards = [rule for report in reports for rule in report.hazard_rules if rule.id in said]
    return source_lines([*(rule for report in reports for rule in report.rules), *hazards])


def _advice(rule: Rule) -> str:
    return f"{rule.advice}; rewrite {' or '.join(rule.helps)}" if rule.helps else rule.advice


def _kilobytes(count: int) -> str:
    return f"{count / 1e3:,.0f}"
