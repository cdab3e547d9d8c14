"""Forms that modules can be stored in, their measured costs, the totals of a choice, and the curve of the best choices.

The model is the usual one for mixed precision: errors of different modules are small and nearly uncorrelated, so their
noise powers add. Artifacts built from a choice are still executed and verified.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from pydantic import ConfigDict

from md_export.parity.metrics import EXACT_DB
from md_export.spec.scheme import Granularity, WeightRule, Weights


@dataclass(frozen=True, order=True)
class Form:
    """Storage of one module's weights; the fields are those of :class:`md_export.spec.scheme.WeightRule`."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    weights: Weights
    granularity: Granularity = "channel"
    block_size: int | None = None
    group_size: int | None = None

    def __post_init__(self) -> None:
        """Raise RecipeError, which names the field, for a form that a recipe cannot express."""
        self.rule(("*",))

    @property
    def is_float(self) -> bool:
        """Whether the weights are stored as they are computed with."""
        return self.weights.startswith("float")

    @property
    def label(self) -> str:
        """Short description: ``int8``, ``int4 per block of 32``, ``palette4 per group of 16``."""
        size = self.block_size or self.group_size
        if self.granularity == "channel":
            return self.weights
        return f"{self.weights} per {self.granularity}" + (f" of {size}" if size else "")

    def rule(self, modules: tuple[str, ...]) -> WeightRule:
        """Return the rule that stores ``modules`` in this form; ``modules`` are globs on module paths."""
        return WeightRule(modules, self.weights, self.granularity, self.block_size, self.group_size)


_FORBID = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Candidate:
    """Measurement of one module's weights in one form, with all other weights unchanged.

    Attributes:
        bytes: stored size, including scales and tables.
        noise: mean squared error of the picture, divided by its squared peak; the PSNR is -10·log10(noise).
        own_noise: mean squared error of the component's output, divided by its power; the SNR is
            -10·log10(own_noise).
    """

    __pydantic_config__ = _FORBID

    form: Form
    bytes: int
    noise: float
    own_noise: float

    def __post_init__(self) -> None:
        """Raise ValueError if the size or a noise power is negative, or a noise power is not finite."""
        if self.bytes < 0 or not all(0 <= value < math.inf for value in (self.noise, self.own_noise)):
            raise ValueError(f"{self} is no measurement")


@dataclass(frozen=True)
class Module:
    """A module with weights and its candidates, at most one per form.

    Attributes:
        path: module path in the component, as used in recipes.
        weights: number of elements.
    """

    __pydantic_config__ = _FORBID

    component: str
    path: str
    weights: int
    candidates: tuple[Candidate, ...]

    def __post_init__(self) -> None:
        """Raise ValueError if there are no candidates, two of one form, or no weights."""
        if not self.candidates or len({one.form for one in self.candidates}) < len(self.candidates):
            raise ValueError(f"{self.component} {self.path}: no candidates, or two of one form")
        if self.weights < 1:
            raise ValueError(f"{self.component} {self.path}: {self.weights} weights")

    @property
    def key(self) -> tuple[str, str]:
        """Sort key that breaks all ties, so that results do not depend on the order of measurement."""
        return self.component, self.path


@dataclass(frozen=True)
class Base:
    """Totals that do not depend on the choice: bytes other than the chosen weights, and noise from other sources."""

    bytes: int = 0
    noise: float = 0.0
    own_noise: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Point:
    """Totals of one choice, including the base.

    Attributes:
        modules: modules in order of their keys.
        chosen: chosen candidate of each module, in the same order.
        bytes: total size.
        noise: noise of the picture, in the unit of :attr:`Candidate.noise`.
        own_noise: noise of each component's output, in the unit of :attr:`Candidate.own_noise`.
    """

    modules: tuple[Module, ...]
    chosen: tuple[Candidate, ...]
    bytes: int
    noise: float
    own_noise: Mapping[str, float]

    @property
    def picture_db(self) -> float:
        """Predicted PSNR of the picture in decibels."""
        return decibels(self.noise)

    @property
    def snr_db(self) -> dict[str, float]:
        """Predicted SNR of each component's output in decibels."""
        return {component: decibels(noise) for component, noise in self.own_noise.items()}

    @property
    def bits(self) -> float:
        """Average stored bits per weight over the modules, without the base."""
        return 8 * sum(one.bytes for one in self.chosen) / sum(module.weights for module in self.modules)

    @property
    def forms(self) -> dict[str, dict[str, Form]]:
        """Chosen forms by component and module path."""
        forms: dict[str, dict[str, Form]] = {}
        for module, one in zip(self.modules, self.chosen, strict=True):
            forms.setdefault(module.component, {})[module.path] = one.form
        return forms


def decibels(noise: float) -> float:
    """Convert a noise power relative to the signal to an SNR in decibels, at most :data:`EXACT_DB`."""
    return min(-10.0 * math.log10(noise), EXACT_DB) if noise > 0 else EXACT_DB


def power(decibel: float) -> float:
    """Convert an SNR in decibels to a relative noise power; the inverse of :func:`decibels`."""
    return float(10.0 ** (-decibel / 10.0))


def in_order(modules: Iterable[Module]) -> tuple[Module, ...]:
    """Return the modules sorted by key; raises ValueError if the list is empty, or a module occurs twice."""
    ordered = tuple(sorted(modules, key=lambda module: module.key))
    if not ordered or len({module.key for module in ordered}) < len(ordered):
        raise ValueError("a choice needs modules, each once")
    return ordered


def point_of(modules: Sequence[Module], chosen: Sequence[Candidate], base: Base) -> Point:
    """Return the totals of a choice; each sum is rounded once, so it does not depend on the order of the modules."""
    own: dict[str, list[float]] = {}
    for module, one in zip(modules, chosen, strict=True):
        own.setdefault(module.component, [base.own_noise.get(module.component, 0.0)]).append(one.own_noise)
    return Point(
        tuple(modules),
        tuple(chosen),
        base.bytes + sum(one.bytes for one in chosen),
        math.fsum([base.noise, *(one.noise for one in chosen)]),
        {component: math.fsum(values) for component, values in sorted(own.items())},
    )


def uniform(modules: Iterable[Module], form: Form, base: Base | None = None) -> Point:
    """Return the choice of one form for every module.

    A module that does not support the form gets its largest candidate, as a target would leave it.
    """
    ordered = in_order(modules)
    chosen = [
        next((one for one in module.candidates if one.form == form), max(module.candidates, key=lambda one: one.bytes))
        for module in ordered
    ]
    return point_of(ordered, chosen, base or Base())


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
    return Fraction(candidate.noise)


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
