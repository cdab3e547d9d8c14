"""Why the figures are what they are: modules, activations, stored weights and lint, as text and plots of a page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from md_export.parity.insight import Insight
from md_export.parity.modules.attribute import Attribution, ModuleError
from md_export.parity.stored.ledger import ComponentAudit, WeightError
from md_export.report.attribute import decibel, name_of, verdict_line
from md_export.report.plots import Ticks, course
from md_export.report.tables import Cells
from md_export.targets.advice import LintReport

_LARGEST_FLOAT16: Final = 65504.0
_WORST_WEIGHTS: Final = 10


@dataclass(frozen=True)
class Part:
    """Of one artifact: a line that says what was found, plots, and tables under their titles."""

    component: str
    line: str
    advice: tuple[str, ...]
    plots: tuple[str, ...]
    tables: tuple[tuple[str, Cells], ...]


def module_parts(found: Insight) -> Iterator[Part]:
    """Error of each module along the network, largest magnitudes, hops, and the worst modules."""
    for one in found.modules:
        leaves = _leaves(one.modules)
        ticks = _ticks([item.path for item in leaves])
        errors = {
            "against torch": [item.cumulative_snr_db for item in leaves],
            "on its own input": [item.local_snr_db for item in leaves],
        }
        peaks = {"largest magnitude": [item.peak for item in leaves]}
        plots = (
            course(
                f"{one.component}: module errors",
                "dB",
                errors,
                ticks,
                one.least_snr_db,
                dots=["on its own input"],
            ),
            course(
                f"{one.component}: largest activations",
                "magnitude",
                peaks,
                ticks,
                _LARGEST_FLOAT16,
                log=True,
            ),
        )
        hops = Cells(("hop", "what", "SNR dB", "at least"), tuple(_hop_rows(one)))
        head = ("module", "class", "local dB", "cumulative dB", "alone dB")
        worst = Cells(head, tuple(_module_row(item) for item in one.worst))
        tables = ((f"Hops on {one.case}", hops), ("Worst modules by local error", worst))
        yield Part(one.component, verdict_line(one), one.advice, plots, tables)


def weight_parts(found: Insight) -> Iterator[Part]:
    """Error of each stored weight along the network, and the worst."""
    order = {item.path: place for one in found.modules for place, item in enumerate(one.modules)}
    for item in found.weights.components if found.weights else ():
        errors = sorted(item.errors, key=lambda error: order.get(_owner(error.name), len(order)))
        worst = sorted(errors, key=lambda error: error.snr_db)[:_WORST_WEIGHTS]
        cells = Cells(("tensor", "stored as", "bytes", "SNR dB"), tuple(map(_weight_row, worst)))
        plots = (_weight_plot(item.component, errors),) if errors else ()
        yield Part(item.component, _audit_line(item), item.faults, plots, (("Weights farthest from it", cells),))


def _weight_plot(component: str, errors: Sequence[WeightError]) -> str:
    types = sorted({error.dtype for error in errors})
    series = {kind: [e.snr_db if e.dtype == kind else math.nan for e in errors] for kind in types}
    ticks = _ticks([_owner(error.name) for error in errors])
    return course(f"{component}: weight errors", "dB", series, ticks, dots=types)


def lint_cells(reports: Sequence[LintReport]) -> Cells:
    """One row for each rule that speaks against operations, or remarks on them."""
    rows = tuple(row for report in reports for row in _lint_rows(report))
    return Cells(("artifact", "rule", "verdict", "ops", "says", "what helps"), rows)


def _lint_rows(report: LintReport) -> Iterator[tuple[str, ...]]:
    for rule in report.rules:
        count = sum(rule.id in op.rules for op in report.ops) + report.remarks.count(rule.id)
        if rule.verdict != "likely" and count:
            yield (report.file, rule.id, rule.verdict, str(count), rule.title, rule.advice)


def _leaves(modules: Sequence[ModuleError]) -> list[ModuleError]:
    """Modules that do the work: none with a part of its own among the others."""
    parents = {item.path.rsplit(".", size)[0] for item in modules for size in range(1, item.path.count(".") + 1)}
    return [item for item in modules if item.path and item.path not in parents]


def _ticks(paths: Sequence[str]) -> Ticks:
    """Where each block begins."""
    blocks: Mapping[str, int] = {_block(path): place for place, path in reversed(list(enumerate(paths)))}
    return sorted((place, name) for name, place in blocks.items())


def _block(path: str) -> str:
    """``down_blocks.1.resnets.0.conv`` → ``down_blocks.1``."""
    parts = path.split(".")
    numbers = [place for place, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbers[0] + 1] if numbers else parts[: max(1, len(parts) - 1)])


def _owner(tensor: str) -> str:
    return tensor.rpartition(".")[0]


def _hop_rows(found: Attribution) -> Iterator[tuple[str, ...]]:
    for hop in found.hops:
        yield (hop.name, hop.what, hop.failure or decibel(hop.snr_db), f"{hop.least_snr_db:g}")


def _module_row(item: ModuleError) -> tuple[str, ...]:
    alone = "-" if item.alone_snr_db is None else decibel(item.alone_snr_db)
    return (name_of(item), item.kind, decibel(item.local_snr_db), decibel(item.cumulative_snr_db), alone)


def _weight_row(item: WeightError) -> tuple[str, ...]:
    return (item.name, item.dtype, f"{item.bytes:,}", decibel(item.snr_db))


def _audit_line(item: ComponentAudit) -> str:
    asked = item.as_requested / max(1, item.promised)
    return (
        f"{item.proven_share:.2%} of the stored bytes are the checkpoint's, within the rounding of their type; "
        f"{asked:.0%} of the weights are {item.requested}, as requested; {_count(item.missing)} missing"
    )


def _count(items: Iterable[object]) -> str:
    number = len(list(items))
    return "none" if number == 0 else str(number)
