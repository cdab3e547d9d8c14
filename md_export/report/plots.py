"""Plots of a report as inline SVG that takes the page's own text colour, light or dark."""

from __future__ import annotations

import io
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

# Matplotlib writes plain hex colours; this one is unlikely elsewhere and becomes the page's text colour.
_INK: Final = "#010203"
_FILL, _BAD = "#4c8dd6", "#d6554c"
# Of stacked parts: none is the red that means a failure.
_PARTS: Final = ("#4c8dd6", "#e0a33e", "#58b09c", "#9b7fd1", "#8a8f98", "#c2c94c", "#7fb8e6", "#b98b5e")
_LARGEST_SHOWN: Final = 140.0


@dataclass(frozen=True)
class Bar:
    """One bar: label, value, the least value that passes (None: no threshold)."""

    label: str
    value: float
    least: float | None = None


def bars(title: str, unit: str, rows: Sequence[Bar]) -> str:
    """Horizontal bars, the first on top, thresholds as ticks; what falls short is red.

    Returns:
        An ``<svg>`` element.
    """
    figure, axes = _figure(title, len(rows))
    shown = [min(row.value, _LARGEST_SHOWN) if unit == "dB" else row.value for row in rows]
    short = [row.least is not None and not row.value >= row.least for row in rows]
    axes.barh(range(len(rows)), shown, color=[_BAD if bad else _FILL for bad in short], height=0.65)
    for index, row in enumerate(rows):
        if row.least is not None:
            axes.plot([row.least, row.least], [index - 0.45, index + 0.45], color=_INK, linewidth=1.5)
    axes.set_yticks(range(len(rows)), [row.label for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel(unit)
    return _svg(figure)


def stacked(title: str, unit: str, rows: Mapping[str, Mapping[str, float]]) -> str:
    """One bar per key, its parts side by side in one order and colour each."""
    figure, axes = _figure(title, len(rows))
    parts = sorted({part for row in rows.values() for part in row})
    left = [0.0] * len(rows)
    for colour, part in zip(itertools.cycle(_PARTS), parts, strict=False):
        widths = [row.get(part, 0.0) for row in rows.values()]
        axes.barh(range(len(rows)), widths, left=left, height=0.65, color=colour, label=part)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.set_yticks(range(len(rows)), list(rows))
    axes.invert_yaxis()
    axes.set_xlabel(unit)
    axes.legend(frameon=False, labelcolor=_INK, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return _svg(figure)


def _figure(title: str, rows: int) -> tuple[Any, Any]:
    # Not pyplot: it keeps every figure alive and looks for a display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 0.9 + 0.26 * max(rows, 1)), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, color=_INK, fontsize=10, loc="left")
    axes.patch.set_alpha(0.0)
    axes.tick_params(colors=_INK, labelsize=8, length=0)
    axes.xaxis.label.set_color(_INK)
    for name, spine in axes.spines.items():
        spine.set_visible(name == "left")
        spine.set_edgecolor(_INK)
    return figure, axes


def _svg(figure: Any) -> str:
    import matplotlib

    buffer = io.StringIO()
    # A fixed salt and no date: the same figures give the same bytes.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "md-export"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :].replace(_INK, "currentColor")
