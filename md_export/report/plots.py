"""Plots of a report as inline SVG, drawn in the page's text colour (light or dark)."""

from __future__ import annotations

import io
import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rich.table import Table

from md_export.engine.search.results import Figures, TradeOff
from md_export.report.tables import decibel, drawn

# Matplotlib writes plain hex colours; this one is unlikely elsewhere and becomes the page's text colour.
_INK: Final = "#010203"
_FILL, _BAD = "#4c8dd6", "#d6554c"
# Colours of stacked parts, without the red that marks a failure.
_PARTS: Final = ("#4c8dd6", "#e0a33e", "#58b09c", "#9b7fd1", "#8a8f98", "#c2c94c", "#7fb8e6", "#b98b5e")
_LARGEST_SHOWN: Final = 140.0
_LEAST_SHOWN: Final = -20.0
_MOST_TICKS: Final = 14
_LINE: Final[Mapping[str, Any]] = {"linewidth": 1.2}
_DOTS: Final[Mapping[str, Any]] = {"marker": "o", "markersize": 2.5, "linestyle": "none"}
# Positions along an axis, and the name of the block that begins there.
Ticks = Sequence[tuple[int, str]]


@dataclass(frozen=True)
class Bar:
    """One bar: label, value, the least value that passes (None: no threshold)."""

    label: str
    value: float
    least: float | None = None


def bars(title: str, unit: str, rows: Sequence[Bar]) -> str:
    """Draw horizontal bars, the first on top, with thresholds as ticks; a bar below its threshold is red.

    Returns:
        An ``<svg>`` element.
    """
    figure, axes = _bars(title, unit, [row.label for row in rows])
    shown = [min(row.value, _LARGEST_SHOWN) if unit == "dB" else row.value for row in rows]
    short = [row.least is not None and not row.value >= row.least for row in rows]
    axes.barh(range(len(rows)), shown, color=[_BAD if bad else _FILL for bad in short], height=0.65)
    for index, row in enumerate(rows):
        if row.least is not None:
            axes.plot([row.least, row.least], [index - 0.45, index + 0.45], color=_INK, linewidth=1.5)
    return _svg(figure)


def stacked(title: str, unit: str, rows: Mapping[str, Mapping[str, float]]) -> str:
    """Draw one bar per key from its parts; every part has one colour and the same order in all bars."""
    figure, axes = _bars(title, unit, list(rows))
    parts = sorted({part for row in rows.values() for part in row})
    left = [0.0] * len(rows)
    for colour, part in zip(itertools.cycle(_PARTS), parts, strict=False):
        widths = [row.get(part, 0.0) for row in rows.values()]
        axes.barh(range(len(rows)), widths, left=left, height=0.65, color=colour, label=part)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.legend(frameon=False, labelcolor=_INK, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return _svg(figure)


def course(
    title: str,
    unit: str,
    series: Mapping[str, Sequence[float]],
    ticks: Ticks,
    limit: float | None = None,
    log: bool = False,
    dots: Collection[str] = (),
) -> str:
    """Draw values along a network; ``limit`` is a dashed line, and the series named in ``dots`` are not joined.

    NaN leaves a gap.
    """
    figure, axes = _figure(title, 8)
    for colour, (label, values) in zip(itertools.cycle(_PARTS), series.items(), strict=False):
        style = _DOTS if label in dots else _LINE
        axes.plot([_shown(value, unit) for value in values], color=colour, label=label, **style)
    if limit is not None:
        axes.axhline(limit, color=_INK, linewidth=0.8, linestyle=(0, (4, 3)))
    if log:
        axes.set_yscale("log")
    kept = _spaced(ticks, max((len(values) for values in series.values()), default=1))
    axes.set_xticks([place for place, _ in kept], [name for _, name in kept], rotation=40, ha="right", fontsize=7)
    axes.set_ylabel(unit)
    if len(series) > 1:
        corner = {"loc": "lower right", "bbox_to_anchor": (1.0, 1.0), "ncols": len(series)}
        axes.legend(frameon=False, labelcolor=_INK, fontsize=8, handletextpad=0.3, columnspacing=1.0, **corner)
    return _svg(figure)


def frontier(
    title: str,
    units: tuple[str, str],
    line: Sequence[tuple[float, float]],
    named: Mapping[str, tuple[float, float]],
    marked: Mapping[str, tuple[float, float]],
) -> str:
    """Draw the best choices as a line, other places with their names, and the chosen ones as large marks."""
    figure, axes = _figure(title, 12)
    axes.plot(*zip(*line, strict=True), color=_FILL, label="the best choices", **{**_DOTS, **_LINE, "linestyle": "-"})
    note = {"textcoords": "offset points", "xytext": (6, -3), "fontsize": 7, "color": _INK}
    for colour, (label, place) in zip(itertools.cycle(_PARTS[1:]), named.items(), strict=False):
        axes.plot(*place, color=colour, marker="s", markersize=5)
        axes.annotate(label, place, **note)
    for symbol, (label, place) in zip(itertools.cycle("*PX"), marked.items(), strict=False):
        style = {"marker": symbol, "markersize": 9, "markerfacecolor": "none", "linestyle": "none"}
        axes.plot(*place, color=_INK, label=label, **style)
    axes.set_xlabel(units[0])
    axes.set_ylabel(units[1])
    axes.legend(frameon=False, labelcolor=_INK, fontsize=8, loc="lower right")
    return _svg(figure)


def _shown(value: float, unit: str) -> float:
    """Return a value that the axis can show: dB are finite and below exact, magnitudes are finite and positive."""
    if unit == "dB":
        return min(max(value, _LEAST_SHOWN), _LARGEST_SHOWN)
    return value if 0.0 < value < float("inf") else float("nan")


def _spaced(ticks: Ticks, count: int) -> Ticks:
    """Return the ticks that leave room for their names."""
    kept: list[tuple[int, str]] = []
    for place, name in ticks:
        if not kept or place - kept[-1][0] >= count / _MOST_TICKS:
            kept.append((place, name))
    return kept


def _figure(title: str, rows: int) -> tuple[Any, Any]:
    # Not pyplot: it keeps every figure alive and looks for a display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 0.9 + 0.26 * max(rows, 1)), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, color=_INK, fontsize=10, loc="left")
    axes.patch.set_alpha(0.0)
    axes.tick_params(colors=_INK, labelsize=8, length=0)
    axes.xaxis.label.set_color(_INK)
    axes.yaxis.label.set(color=_INK, fontsize=8)
    axes.spines[:].set(edgecolor=_INK, visible=False)
    axes.spines.left.set_visible(True)
    return figure, axes


def _bars(title: str, unit: str, labels: Sequence[str]) -> tuple[Any, Any]:
    """Return a figure with a labelled row for each bar, the first on top."""
    figure, axes = _figure(title, len(labels))
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.set_xlabel(unit)
    return figure, axes


def _svg(figure: Any) -> str:
    import matplotlib

    buffer = io.StringIO()
    # A fixed salt and no date: the same figures give the same bytes.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "md-export"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :].replace(_INK, "currentColor")


# Units of an axis of bytes, the largest first.
_UNITS: Final = ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"), (1, "bytes"))


def curve_plot(found: TradeOff) -> str:
    """Draw bytes against the picture's PSNR: the curve, uniform forms, the choice, and the built export.

    Returns:
        An ``<svg>`` element, which is a file's content too.
    """
    every = (*found.curve, *found.uniform.values(), found.chosen, *found.built.values())
    scale, unit = next(
        (scale, unit) for scale, unit in _UNITS if max(one.bytes for one in every) >= scale or scale == 1
    )

    def place(one: Figures) -> tuple[float, float]:
        return one.bytes / scale, min(one.picture_db or 0.0, _LARGEST_SHOWN)

    built = {f"built: {label}": place(one) for label, one in found.built.items() if one.picture_db is not None}
    return frontier(
        f"{found.target}: {found.budget}",
        (unit, "picture PSNR, dB"),
        [place(one) for one in found.curve],
        {label: place(one) for label, one in found.uniform.items()},
        {"chosen": place(found.chosen), **built},
    )


def trade_off_table(found: TradeOff) -> Table:
    """Return the choice as predicted and as built, and the uniform forms as predicted."""
    built = [(f"{label}, built", one) for label, one in found.built.items()]
    uniform = [(f"all {label}, predicted", one) for label, one in found.uniform.items()]
    rows = [
        (label, f"{one.bytes:,}", f"{one.bits:.2f}", decibel(one.picture_db), *map(decibel, one.snr_db.values()))
        for label, one in (*built, ("chosen, predicted", found.chosen), *uniform)
    ]
    head = ("weights", "bytes", "bits", "picture dB", *found.chosen.snr_db)
    return drawn(f"{found.target}: {found.budget}", head, rows)
