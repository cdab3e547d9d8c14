"""What float16 may do inside an artifact, as terminal tables: how much was measured, how much follows from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Final

from rich.markup import escape
from rich.table import Table

from md_export.targets.advice import LintReport
from md_export.targets.bounds import RULES, Figures, Float16Bound, worst_op

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
    """By precision; the ops with a finding; what the findings mean."""
    bounds = report.bounds or ()
    yield _precisions(report, bounds)
    if any(bound.rules for bound in bounds):
        yield _ops(report, bounds)
    for rule in RULES:
        kinds = Counter(bound.kind for bound in bounds if rule.id in bound.rules)
        if kinds:
            yield f"{rule.id} ({'certain' if rule.certain else 'possible'}; found in {kinds.total()}): {rule.title}"
        for advice in dict.fromkeys(map(rule.advice_for, kinds)):
            about = ", ".join(f"{count} {kind}" for kind, count in kinds.items() if rule.advice_for(kind) == advice)
            yield f"  {about}: {advice}"
    if report.emulated_db is not None:
        yield f"{report.file}: {emulated(report.emulated_db, report.budget_db)}"
    yield LEGEND


def emulated(found_db: float, budget_db: float | None) -> str:
    """What the whole artifact makes of float16 values."""
    if found_db < 0:
        return "emulated with float16 values and float32 sums: its outputs are not finite, or nothing is left of them"
    verdict = "" if budget_db is None else f", {'within' if found_db >= budget_db else 'NOT within'} {budget_db:g} dB"
    return f"emulated as a whole, float16 values and float32 sums: {found_db:.1f} dB{verdict}"


def _precisions(report: LintReport, bounds: tuple[Float16Bound, ...]) -> Table:
    largest = max((bound.largest for bound in bounds), default=0.0)
    title = (
        f"{report.file}: float16 on a phone, bounded from {report.cases} sets of inputs; "
        f"{len(bounds)} values, the largest {largest:.4g}"
    )
    table = Table(title=title)
    names = ("precision", "ops with sums", f"expected below {report.budget_db:g} dB", "least dB", "where")
    for name in names:
        table.add_column(name, justify="left" if name in ("precision", "where") else "right", overflow="fold")
    for precision, choice in PRECISIONS.items():
        known = [figures for bound in bounds if (figures := choice(bound)) is not None]
        below = sum(figures.expected < (report.budget_db or 0.0) for figures in known)
        worst = worst_op(bounds, choice)
        where = f"{worst.kind} {worst.module}" if worst else "-"
        table.add_row(precision, str(len(known)), str(below), _triple(worst, choice), escape(where))
    return table


def _ops(report: LintReport, bounds: tuple[Float16Bound, ...]) -> Table:
    found = [bound for bound in bounds if bound.rules]
    table = Table(title=f"{report.file}: {len(found)} ops with a finding, the worst {_SHOWN}")
    right = ("largest", "terms", "sum |terms|", "default dB", "float32 sums dB")
    for name in ("kind", "module", *right, "finding"):
        table.add_column(name, justify="right" if name in right else "left", overflow="fold")
    for bound in sorted(found, key=_urgency)[:_SHOWN]:
        figures = [_triple(bound, choice) for choice in list(PRECISIONS.values())[:2]]
        sizes = (f"{bound.largest:.4g}", str(bound.terms or "-"), f"{bound.partial_sum:.4g}")
        table.add_row(bound.kind, escape(bound.module or bound.name), *sizes, *figures, ", ".join(bound.rules))
    return table


def _urgency(bound: Float16Bound) -> tuple[int, float]:
    order = [rule.id for rule in RULES]
    by_rule = min(order.index(name) for name in bound.rules)
    float32 = bound.rules == ("loses",) and bound.float32_sums
    figures = float32 or bound.default
    return ({"loses": 2, "loses-by-default": 3}.get(order[by_rule], by_rule), figures.expected if figures else 0.0)


def _triple(bound: Float16Bound | None, choice: _Choice) -> str:
    """``worst / probable / expected``."""
    figures = choice(bound) if bound else None
    return f"{figures.worst:.0f} / {figures.probable:.0f} / {figures.expected:.0f}" if figures else "-"
