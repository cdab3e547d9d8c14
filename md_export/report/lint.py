"""What a lint said, as terminal tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from rich.markup import escape
from rich.table import Table

from md_export.report.lint_bounds import bound_tables
from md_export.targets.advice import Hazard, HazardRule, LintReport, Rule

_WORST: Final = 10
CAUTION: Final = "Advice from known rules. Where an operation really runs, only a device can tell."


def lint_tables(reports: Iterable[LintReport]) -> Iterator[Table | str]:
    """A summary of all packages; for each its rules, worst operations and what float16 does to it; the sources."""
    reports = tuple(reports)
    yield _summary(reports)
    for report in reports:
        yield _rules(report)
        if report.worst():
            yield _worst(report)
        if report.hazards is not None:
            yield _hazards(report)
            yield from _findings(report)
        if report.bounds is not None:
            yield from bound_tables(report)
    yield from _sources(reports)
    yield CAUTION


def rule_table(rules: Iterable[Rule], hazards: Iterable[HazardRule], version: int) -> Table:
    """The rule file itself."""
    table = _table(f"rules, version {version}", ("rule", "verdict", "confidence", "systems", "says", "what to do"))
    for rule in rules:
        systems = f"{rule.since or ''}…{rule.until or ''}" if rule.since or rule.until else "all"
        table.add_row(rule.id, rule.verdict, rule.confidence, systems, escape(rule.title), escape(_advice(rule)))
    for item in hazards:
        table.add_row(item.id, item.grade, item.confidence, "all", escape(item.title), escape(item.advice))
    return table


def source_lines(rules: Iterable[Rule | HazardRule]) -> Iterator[str]:
    """One line per page that a rule stands on."""
    pages: dict[str, list[str]] = {}
    for rule in rules:
        names = pages.setdefault(rule.source, [])
        if rule.id not in names:
            names.append(rule.id)
    return (f"{', '.join(names)}: {page}" for page, names in pages.items())


def _table(title: str, names: Iterable[str], right: Iterable[str] = ()) -> Table:
    table = Table(title=title)
    for name in names:
        table.add_column(name, justify="right" if name in right else "left", overflow="fold")
    return table


def _summary(reports: tuple[LintReport, ...]) -> Table:
    counts = ("operations", "likely", "unknown", "unlikely", "layout KB")
    engines = " and ".join(sorted({report.engine for report in reports}))
    title = f"{engines}: verdicts by rule, not by measurement"
    table = _table(title, ("package", "for", *counts, "remarks"), counts)
    for report in reports:
        verdicts = (str(report.count(verdict)) for verdict in ("likely", "unknown", "unlikely"))
        remarks = "; ".join(report.rule(name).title for name in report.remarks) or "-"
        total, layout = str(len(report.ops)), _kilobytes(report.layout_bytes)
        table.add_row(report.file, report.system, total, *verdicts, layout, escape(remarks))
    return table


def _rules(report: LintReport) -> Table:
    names = ("rule", "verdict", "operations", "KB", "confidence", "says", "what to do")
    table = _table(f"{report.file}: rules that fit", names, ("operations", "KB"))
    for rule in report.rules:
        ops = [op for op in report.ops if rule.id in op.rules]
        cells = (rule.id, rule.verdict, str(len(ops)), _kilobytes(sum(op.bytes for op in ops)), rule.confidence)
        table.add_row(*cells, escape(rule.title), escape(_advice(rule)))
    silent = sum(not op.rules for op in report.ops)
    if silent:
        table.add_row("-", "unknown", str(silent), "", "", "no rule speaks of these kinds", "-")
    return table


def _worst(report: LintReport) -> Table:
    names = ("operation", "kind", "module", "verdict", "rule", "KB", "what to do")
    table = _table(f"{report.file}: the worst {_WORST}", names, ("KB",))
    for op in report.worst(_WORST):
        rule = report.gravest(op)
        cells = (op.name, op.kind, op.module or "-", op.verdict, rule.id, _kilobytes(op.bytes))
        table.add_row(*map(escape, cells), escape(_advice(rule)))
    return table


def _hazards(report: LintReport) -> Table:
    """The largest values first, those with a finding before the others."""
    hazards = report.hazards or ()
    faults = sum("overflow" in item.rules for item in hazards)
    title = f"{report.file}: {len(hazards)} float16 values on real activations, {faults} overflow"
    right = ("largest", "smallest", "overflow", "flushed", "subnormal")
    table = _table(title, ("operation", "kind", "module", *right, "finding"), right)
    for item in sorted(hazards, key=lambda item: (-item.overflows, -item.largest))[:_WORST]:
        table.add_row(*map(escape, _hazard_cells(item)))
    return table


def _hazard_cells(item: Hazard) -> tuple[str, ...]:
    count = max(item.count, 1)
    shares = (f"{part / count:.2%}" for part in (item.overflows, item.flushed, item.subnormal))
    figures = (f"{item.largest:.4g}", f"{item.smallest:.2g}", *shares)
    return (item.name, item.kind, item.module or "-", *figures, ", ".join(item.rules) or "-")


def _findings(report: LintReport) -> Iterator[str]:
    """What the findings of the hazard table mean, each with the number of values it was made on."""
    for rule in report.hazard_rules:
        count = sum(rule.id in item.rules for item in report.hazards or ())
        if count:
            yield f"{rule.id} ({rule.grade}, {rule.confidence}; found in {count}): {rule.title}; {rule.advice}"


def _sources(reports: tuple[LintReport, ...]) -> Iterator[str]:
    said = {name for report in reports for item in report.hazards or () for name in item.rules}
    hazards = [rule for report in reports for rule in report.hazard_rules if rule.id in said]
    return source_lines([*(rule for report in reports for rule in report.rules), *hazards])


def _advice(rule: Rule) -> str:
    return f"{rule.advice}; rewrite {' or '.join(rule.helps)}" if rule.helps else rule.advice


def _kilobytes(count: int) -> str:
    return f"{count / 1e3:,.0f}"
