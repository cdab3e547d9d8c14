"""A choice while it is being made: exact sums, so that no test of a budget has rounding in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from md_export.search.choice import Base, Candidate, Module, exact, power
from md_export.search.curve import cheapest

# What changing one module to a candidate is worth; None where it may not be done.
Worth = Callable[[int, Candidate], Fraction | None]


@dataclass(frozen=True)
class Floors:
    """Least qualities as most noises; None or no entry asks nothing."""

    noise: float | None
    own_noise: Mapping[str, float]


def floors(picture_db: float | None, snr_db: float | None, modules: Sequence[Module]) -> Floors:
    """Of the picture, and of each component's output."""
    own = {} if snr_db is None else {module.component: power(snr_db) for module in modules}
    return Floors(None if picture_db is None else power(picture_db), own)


class Selection:
    """One candidate for each module, at first the one with the fewest bytes."""

    def __init__(self, modules: Sequence[Module], base: Base) -> None:
        self.modules = modules
        self.chosen = cheapest(modules)
        self.bytes = sum(one.bytes for one in self.chosen)
        self.noise = exact(base.noise) + sum(exact(one.noise) for one in self.chosen)
        self.own = {module.component: exact(base.own_noise.get(module.component, 0.0)) for module in modules}
        for module, one in zip(modules, self.chosen, strict=True):
            self.own[module.component] += exact(one.own_noise)

    def change(self, index: int, candidate: Candidate) -> None:
        """Choose another candidate for one module."""
        self.bytes += candidate.bytes - self.chosen[index].bytes
        self.noise, self.own[self.modules[index].component] = self._noises(index, candidate)
        self.chosen[index] = candidate

    def misses(self, wanted: Floors, component: str | None = None) -> bool:
        """Whether the picture, or any component, or the one that is named, is too noisy."""
        names = self.own if component is None else (component,)
        return _above(self.noise, wanted.noise) or any(
            _above(self.own[name], wanted.own_noise.get(name)) for name in names
        )

    def would_miss(self, wanted: Floors, index: int, candidate: Candidate) -> bool:
        """Whether the picture or the module's component would be too noisy with this candidate."""
        noise, own = self._noises(index, candidate)
        return _above(noise, wanted.noise) or _above(own, wanted.own_noise.get(self.modules[index].component))

    def improve(self, worth: Worth) -> None:
        """Make the change that is worth most, until none is allowed; each must use up what allows it."""
        while found := list(self._changes(worth)):
            _, index, candidate = min(found, key=lambda item: (-item[0], item[1], item[2].form.label))
            self.change(index, candidate)

    def _changes(self, worth: Worth) -> Iterator[tuple[Fraction, int, Candidate]]:
        for index, module in enumerate(self.modules):
            for candidate in module.candidates:
                value = worth(index, candidate)
                if value is not None:
                    yield value, index, candidate

    def _noises(self, index: int, candidate: Candidate) -> tuple[Fraction, Fraction]:
        """Of the picture and of the module's component, with this candidate."""
        before = self.chosen[index]
        return (
            self.noise + exact(candidate.noise) - exact(before.noise),
            self.own[self.modules[index].component] + exact(candidate.own_noise) - exact(before.own_noise),
        )


def _above(noise: Fraction, most: float | None) -> bool:
    # Rounded once, as a point's sums are.
    return most is not None and float(noise) > most
