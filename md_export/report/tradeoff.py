"""A search's curve as a picture."""

from __future__ import annotations

from typing import Final

from rich.table import Table

from md_export.report.plots import frontier
from md_export.report.tables import decibel
from md_export.search.tradeoff import Figures, TradeOff

# Units of an axis of bytes, the largest first.
_UNITS: Final = ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"), (1, "bytes"))
# An exact picture has no place on an axis of dB.
_LARGEST_SHOWN: Final = 140.0


def curve_plot(found: TradeOff) -> str:
    """Bytes against the picture's PSNR: the curve, uniform forms beside it, the choice, and what was built of it.

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
    """The choice as predicted and as built, and uniform forms beside it as predicted."""
    table = Table(title=f"{found.target}: {found.budget}")
    for name in ("weights", "bytes", "bits", "picture dB", *found.chosen.snr_db):
        table.add_column(name, justify="left" if name == "weights" else "right")
    rows = [(f"{label}, built", one) for label, one in found.built.items()]
    rows += [("chosen, predicted", found.chosen)]
    rows += [(f"all {label}, predicted", one) for label, one in found.uniform.items()]
    for label, one in rows:
        picture = "-" if one.picture_db is None else decibel(one.picture_db)
        figures = (picture, *map(decibel, one.snr_db.values()))
        table.add_row(label, f"{one.bytes:,}", f"{one.bits:.2f}", *figures)
    return table
