"""Show an estimate as tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from rich.table import Table

from md_export.diagnose.estimate.command import ComponentEstimate, Estimate
from md_export.diagnose.estimate.roofline import Group
from md_export.report.tables import drawn

_MOST: Final = 6


def estimate_tables(found: Estimate) -> tuple[Table | str, ...]:
    """Return tables of the components with their lower bounds, of where the time goes, and of possible changes."""
    return (_components(found), caution(found), _places(found), *_changes(found))


def caution(found: Estimate) -> str:
    """Return two sentences on how reliable the figures are."""
    return (
        f"Estimates, not measurements. {found.rows} published latencies on {found.unit}, each estimated without "
        f"itself: half of them within a factor of {found.typical_factor:.2f}, four of five within "
        f"{found.likely_factor:.2f} (the range above), the worst {found.worst_factor:.1f}. The floor is physics: "
        "multiply-adds at the unit's peak, or weights read once at the memory's bandwidth."
    )


def _components(found: Estimate) -> Table:
    title = f"{found.recipe} on {found.title}: estimated milliseconds of a call"
    head = ("component", "estimate ms", "4 of 5 within", "floor ms", "GMAC", "weights MB", "moved MB", "ops")
    rows = []
    for item in found.components:
        sizes = (f"{item.macs / 1e9:.2f}", f"{item.weight_bytes / 1e6:.1f}", f"{item.activation_bytes / 1e6:,.0f}")
        name = item.component + (f", {item.calls} times" if item.calls > 1 else "")
        rows.append((name, _ms(item.ms), _range(item.ms, found.likely_factor), _floor(item), *sizes, str(item.ops)))
    if len(found.components) > 1:
        rows.append(("all", _ms(found.ms), _range(found.ms, found.likely_factor), _ms(found.floor_ms), "", "", "", ""))
    return drawn(title, head, rows)


def _range(ms: float, factor: float) -> str:
    return f"{_ms(ms / factor)} – {_ms(ms * factor)}"


def _floor(item: ComponentEstimate) -> str:
    which = "arithmetic" if item.floor.arithmetic_ms >= item.floor.memory_ms else "memory"
    return f"{_ms(item.floor.ms)} ({which})"


def _ms(value: float) -> str:
    return f"{value:.1f}" if value >= 1 else f"{value:.3f}"


def _places(found: Estimate) -> Table:
    rows = [
        (item.component, label, *_place(place, item.ms))
        for item in found.components
        for label, places in (("work", item.by_work), ("kind", item.by_kind), ("modules", item.by_pattern))
        for place in places[:_MOST]
    ]
    return drawn("where the estimated time goes", ("component", "by", "", "ms", "share", "ops"), rows)


def _place(place: Group, whole: float) -> tuple[str, ...]:
    return place.name or "-", _ms(place.ms), f"{place.ms / whole:.1%}" if whole else "-", str(place.ops)


def _changes(found: Estimate) -> Iterator[Table | str]:
    ranked = [(change, item) for item in found.components for change in item.changes]
    rows = [
        (item.component, change.what, _ms(change.saves_ms), f"{change.saves_ms / item.ms:.0%}", str(change.ops))
        for change, item in sorted(ranked, key=lambda pair: -pair[0].saves_ms * pair[1].calls)
    ]
    title = "what to change for speed: estimated savings at most, which do not add up"
    table = drawn(title, ("component", "change", "saves ms", "share", "ops"), rows)
    yield table if rows else "nothing that is known to save time is left to change"
