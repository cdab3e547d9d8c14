"""Forms that each module can be stored in, their measured costs, and the totals of a choice of one form per module.

The model is the usual one for mixed precision: errors of different modules are small and nearly uncorrelated, so their
noise powers add. Artifacts built from a choice are still executed and verified.
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
    def label(self) -> str:
        """Short description: ``int8``, ``int4 per block of 32``, ``palette4 per group of 16``."""
        size = self.block_size or self.group_size
        if self.granularity == "channel":
            return self.weights
        return f"{self.weights} per {self.granularity}" + (f" of {size}" if size else "")

    def rule(self, modules: tuple[str, ...]) -> WeightRule:
        """Return the rule that stores ``modules`` in this form; ``modules`` are globs on module paths."""
        return WeightRule(modules, self.weights, self.granularity, self.block_size, self.group_size)


def form_of(scheme: QuantScheme | WeightRule) -> Form:
    """Return the form of a rule, or a scheme's form for modules that match none of its rules."""
    return Form(scheme.weights, scheme.granularity, scheme.block_size, scheme.group_size)


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
    """Return the modules sorted by key; raises ValueError if there are none, or a module occurs twice."""
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


def exact(value: float) -> Fraction:
    """Convert a figure to a fraction, so that comparisons of sums and slopes have no rounding errors."""
    return Fraction(value)
