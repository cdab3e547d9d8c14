"""Trade-off between quality and size: the curve, and the results of a search as data."""

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
    """Size and quality of one choice.

    Attributes:
        bytes: total size of all artifacts.
        bits: average stored bits per weight over the modules with a choice.
        picture_db: PSNR of the picture in decibels; None if a component needed for the picture is missing.
        snr_db: SNR of each component's output in decibels.
    """

    __pydantic_config__ = _FORBID

    bytes: int
    bits: float
    picture_db: float | None
    snr_db: dict[str, float]


@dataclass(frozen=True)
class TradeOff:
    """Result of a search: the curve of size against the picture's PSNR, and the choice.

    Attributes:
        budget: description of the budget.
        curve: predicted figures, in order of increasing bytes.
        uniform: predicted figures for all modules in one form, by the form's label; modules that do not support the
            form stay larger.
        chosen: predicted figures for the choice.
        built: figures measured on built artifacts, by ``chosen`` or a form's label.
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
    """Return the predicted figures of a choice."""
    return Figures(point.bytes, point.bits, point.picture_db, point.snr_db)


def trade_off_json(found: TradeOff) -> str:
    """Serialize a trade-off to JSON for a file; :func:`trade_off_from_json` parses it."""
    return _TRADE_OFF.dump_json(found, indent=2).decode() + "\n"


def trade_off_from_json(content: str) -> TradeOff:
    """Parse the output of :func:`trade_off_json`; raises ValueError for anything else."""
    return _TRADE_OFF.validate_json(content)


# Returns the loss of quality of a module's candidate; less is better.
Cost = Callable[[Module, Candidate], Fraction]


@dataclass(frozen=True)
class Step:
    """Change of one module from a candidate to the next one on its hull; ``gain`` is the cost saved per byte."""

    index: int
    before: Candidate
    after: Candidate
    gain: Fraction


def picture_noise(_module: Module, candidate: Candidate) -> Fraction:
    """Return the candidate's noise in the picture, the cost that defines the curve."""
    return exact(candidate.noise)


def curve(modules: Iterable[Module], base: Base | None = None) -> tuple[Point, ...]:
    """Return the vertices of the lower hull of noise against bytes, in order of increasing bytes.

    Points between two vertices are included where several steps have the same gain. No choice with at most the bytes
    of one of these points has less noise than that point.
    """
    ordered, base = in_order(modules), base or Base()
    chosen = cheapest(ordered)
    points = [point_of(ordered, chosen, base)]
    for step in steps(ordered, picture_noise):
        chosen[step.index] = step.after
        points.append(point_of(ordered, chosen, base))
    return tuple(points)


def cheapest(modules: Sequence[Module]) -> list[Candidate]:
    """Return each module's candidate with the fewest bytes; the curve begins there."""
    return [hull(module, picture_noise)[0] for module in modules]


def steps(modules: Sequence[Module], cost: Cost) -> list[Step]:
    """Return all steps of all modules by decreasing gain.

    The steps of one module keep their order, because gains decrease along its hull.
    """
    found = []
    for index, module in enumerate(modules):
        kept = hull(module, cost)
        for before, after in itertools.pairwise(kept):
            found.append(Step(index, before, after, gain(module, before, after, cost)))
    return sorted(found, key=lambda step: (-step.gain, step.index))


def hull(module: Module, cost: Cost) -> list[Candidate]:
    """Return the candidates on a module's lower convex hull, from the fewest bytes to the least cost.

    Each of them minimizes cost + λ·bytes for some λ.
    """
    kept: list[Candidate] = []
    for one in sorted(module.candidates, key=lambda one: (one.bytes, cost(module, one), one.form.label)):
        if kept and cost(module, one) >= cost(module, kept[-1]):
            continue
        while len(kept) > 1 and gain(module, kept[-2], kept[-1], cost) <= gain(module, kept[-1], one, cost):
            kept.pop()
        kept.append(one)
    return kept


def gain(module: Module, before: Candidate, after: Candidate, cost: Cost) -> Fraction:
    """Return the cost saved per additional byte; ``after`` must have more bytes than ``before``."""
    return (cost(module, before) - cost(module, after)) / (after.bytes - before.bytes)
