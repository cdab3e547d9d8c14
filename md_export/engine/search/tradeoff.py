"""What a search found, as data: quality against size."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from pydantic import ConfigDict, TypeAdapter

from md_export.engine.search.choice import Base, Candidate, Module, Point, exact, in_order, point_of

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


# What a candidate of a module costs in quality; less is better.
Cost = Callable[[Module, Candidate], Fraction]


@dataclass(frozen=True)
class Step:
    """From one candidate of a module to the next on its hull; ``gain`` is noise saved per byte."""

    index: int
    before: Candidate
    after: Candidate
    gain: Fraction


def picture_noise(_module: Module, candidate: Candidate) -> Fraction:
    """The cost that the curve is about."""
    return exact(candidate.noise)


def curve(modules: Iterable[Module], base: Base | None = None) -> tuple[Point, ...]:
    """Every vertex of the hull, and points between two where steps are worth the same, from the fewest bytes on.

    No choice at all has less noise in the bytes of one of these.
    """
    ordered, base = in_order(modules), base or Base()
    chosen = cheapest(ordered)
    points = [point_of(ordered, chosen, base)]
    for step in steps(ordered, picture_noise):
        chosen[step.index] = step.after
        points.append(point_of(ordered, chosen, base))
    return tuple(points)


def cheapest(modules: Sequence[Module]) -> list[Candidate]:
    """Each module's form with the fewest bytes, where the curve begins."""
    return [hull(module, picture_noise)[0] for module in modules]


def steps(modules: Sequence[Module], cost: Cost) -> list[Step]:
    """Every step of every module, the best first; of one module they keep their order, since its gains fall."""
    found = []
    for index, module in enumerate(modules):
        kept = hull(module, cost)
        for before, after in itertools.pairwise(kept):
            found.append(Step(index, before, after, gain(module, before, after, cost)))
    return sorted(found, key=lambda step: (-step.gain, step.index))


def hull(module: Module, cost: Cost) -> list[Candidate]:
    """A module's candidates that are best for some λ, from the fewest bytes to the least cost."""
    kept: list[Candidate] = []
    for one in sorted(module.candidates, key=lambda one: (one.bytes, cost(module, one), one.form.label)):
        if kept and cost(module, one) >= cost(module, kept[-1]):
            continue
        while len(kept) > 1 and gain(module, kept[-2], kept[-1], cost) <= gain(module, kept[-1], one, cost):
            kept.pop()
        kept.append(one)
    return kept


def gain(module: Module, before: Candidate, after: Candidate, cost: Cost) -> Fraction:
    """Cost saved per byte; ``after`` has more bytes."""
    return (cost(module, before) - cost(module, after)) / (after.bytes - before.bytes)
