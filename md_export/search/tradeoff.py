"""What a search found, as data: quality against size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pydantic import ConfigDict, TypeAdapter

from md_export.search.choice import Point

_FORBID: Final = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Figures:
    """One choice.

    Attributes:
        bytes: of all artifacts together.
        bits: stored per weight, on the average of the modules that are chosen for.
        picture_db: PSNR of the picture; None where a component is missing for it.
        snr_db: of each component's output.
    """

    __pydantic_config__ = _FORBID

    bytes: int
    bits: float
    picture_db: float | None
    snr_db: dict[str, float]


@dataclass(frozen=True)
class TradeOff:
    """The curve of bytes against the picture's PSNR.

    Attributes:
        budget: in words.
        curve: predicted, from the fewest bytes on.
        uniform: predicted for all modules in one form, by the form's label; modules without that form stay larger.
        chosen: predicted for the choice.
        built: measured on the artifacts that were built, by what they are: ``chosen``, or a form's label.
    """

    __pydantic_config__ = _FORBID

    target: str
    budget: str
    curve: tuple[Figures, ...]
    uniform: dict[str, Figures]
    chosen: Figures
    built: dict[str, Figures]


_TRADE_OFF: Final = TypeAdapter(TradeOff)


def figures_of(point: Point) -> Figures:
    """As the model predicts them."""
    return Figures(point.bytes, point.bits, point.picture_db, point.snr_db)


def trade_off_json(found: TradeOff) -> str:
    """As a file's content; :func:`trade_off_from_json` reads it back."""
    return _TRADE_OFF.dump_json(found, indent=2).decode() + "\n"


def trade_off_from_json(content: str) -> TradeOff:
    """ValueError where it is none."""
    return _TRADE_OFF.validate_json(content)
