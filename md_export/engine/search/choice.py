"""What each module may be, what is known of it, and what a choice of one form each adds up to.

The model is the usual one of mixed precision: errors of different modules are nearly uncorrelated and small, so that
their noise powers add. What is built from a choice is executed and judged all the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from pydantic import ConfigDict

from md_export.parity.metrics import EXACT_DB
from md_export.spec.scheme import Granularity, QuantScheme, WeightRule, Weights


@dataclass(frozen=True, order=True)
class Form:
    """One choice for one module; the fields are those of :class:`md_export.spec.scheme.WeightRule`."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    weights: Weights
    granularity: Granularity = "channel"
    block_size: int | None = None
    group_size: int | None = None

    def __post_init__(self) -> None:
        """Refuse what no recipe could say. RecipeError names the field."""
        self.rule(("*",))

    @property
    def label(self) -> str:
        """Short words: ``int8``, ``int4 per block of 32``, ``palette4 per group of 16``."""
        size = self.block_size or self.group_size
        if self.granularity == "channel":
            return self.weights
        return f"{self.weights} per {self.granularity}" + (f" of {size}" if size else "")

    def rule(self, modules: tuple[str, ...]) -> WeightRule:
        """The rule that stores these modules so; globs on module paths."""
        return WeightRule(modules, self.weights, self.granularity, self.block_size, self.group_size)


def form_of(scheme: QuantScheme | WeightRule) -> Form:
    """What a scheme stores where none of its rules matches, or what a rule stores."""
    return Form(scheme.weights, scheme.granularity, scheme.block_size, scheme.group_size)


_FORBID = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Candidate:
    """One module's weights in one form, all other weights as they were.

    Attributes:
        bytes: stored, scales and tables included.
        noise: mean squared error that the picture gets, over its squared peak: its PSNR is -10·log10 of that.
        own_noise: the same of the component's output, over its power: its SNR is -10·log10 of that.
    """

    __pydantic_config__ = _FORBID

    form: Form
    bytes: int
    noise: float
    own_noise: float

    def __post_init__(self) -> None:
        """ValueError where a figure is no size or power."""
        if self.bytes < 0 or not all(0 <= value < math.inf for value in (self.noise, self.own_noise)):
            raise ValueError(f"{self} is no measurement")


@dataclass(frozen=True)
class Module:
    """A module with weights, and its candidates; one of each form at most.

    Attributes:
        path: in its component, as recipes name it.
        weights: elements.
    """

    __pydantic_config__ = _FORBID

    component: str
    path: str
    weights: int
    candidates: tuple[Candidate, ...]

    def __post_init__(self) -> None:
        """ValueError where there is nothing to choose from."""
        if not self.candidates or len({one.form for one in self.candidates}) < len(self.candidates):
            raise ValueError(f"{self.component} {self.path}: no candidates, or two of one form")
        if self.weights < 1:
            raise ValueError(f"{self.component} {self.path}: {self.weights} weights")

    @property
    def key(self) -> tuple[str, str]:
        """Breaks every tie, so that no order of measuring shows in a result."""
        return self.component, self.path


@dataclass(frozen=True)
class Base:
    """What no choice changes: bytes that are no such weights, and noise of everything but them."""

    bytes: int = 0
    noise: float = 0.0
    own_noise: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Point:
    """One choice; everything includes the base.

    Attributes:
        modules, chosen: side by side, in order of their keys.
        noise: of the picture, as a candidate's.
        own_noise: by component.
    """

    modules: tuple[Module, ...]
    chosen: tuple[Candidate, ...]
    bytes: int
    noise: float
    own_noise: Mapping[str, float]

    @property
    def picture_db(self) -> float:
        """Predicted PSNR of the picture."""
        return decibels(self.noise)

    @property
    def snr_db(self) -> dict[str, float]:
        """Predicted SNR of each component's output."""
        return {component: decibels(noise) for component, noise in self.own_noise.items()}

    @property
    def bits(self) -> float:
        """Stored bits per weight, on the average of the modules; without the base."""
        return 8 * sum(one.bytes for one in self.chosen) / sum(module.weights for module in self.modules)

    @property
    def forms(self) -> dict[str, dict[str, Form]]:
        """By component and module path."""
        forms: dict[str, dict[str, Form]] = {}
        for module, one in zip(self.modules, self.chosen, strict=True):
            forms.setdefault(module.component, {})[module.path] = one.form
        return forms


def decibels(noise: float) -> float:
    """Of a noise power relative to the signal's; no noise is :data:`EXACT_DB`."""
    return min(-10.0 * math.log10(noise), EXACT_DB) if noise > 0 else EXACT_DB


def power(decibel: float) -> float:
    """What :func:`decibels` reads."""
    return float(10.0 ** (-decibel / 10.0))


def in_order(modules: Iterable[Module]) -> tuple[Module, ...]:
    """By key. ValueError where there is none, or one twice."""
    ordered = tuple(sorted(modules, key=lambda module: module.key))
    if not ordered or len({module.key for module in ordered}) < len(ordered):
        raise ValueError("a choice needs modules, each once")
    return ordered


def point_of(modules: Sequence[Module], chosen: Sequence[Candidate], base: Base) -> Point:
    """The sums, rounded once: they do not depend on an order."""
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
    """Every module in one form; one that does not have it stays at its largest, as a target would leave it."""
    ordered = in_order(modules)
    chosen = [
        next((one for one in module.candidates if one.form == form), max(module.candidates, key=lambda one: one.bytes))
        for module in ordered
    ]
    return point_of(ordered, chosen, base or Base())


def exact(value: float) -> Fraction:
    """Of a figure: comparisons of sums and slopes then have no rounding in them."""
    return Fraction(value)
