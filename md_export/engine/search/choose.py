"""One choice under a budget: along the curve as far as it goes, then single modules with what is left."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from md_export.engine.search.budget import Budget
from md_export.engine.search.choice import Base, Candidate, Module, Point, decibels, exact, in_order, point_of, power
from md_export.engine.search.tradeoff import cheapest, hull, picture_noise, steps
from md_export.errors import UsageError

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


def choose(modules: Iterable[Module], budget: Budget, base: Base | None = None) -> Point:
    """The fewest bytes with the budget's quality; the best picture within its size where it limits that.

    Where the budget for the picture, or for size, falls on a vertex of the curve, this is the optimum; between two of
    them it is at least as good as the one that keeps to it. The score is left to :func:`first_passing`.

    Raises:
        UsageError: no choice keeps to the budget; the message says what can be had.
    """
    ordered, base = in_order(modules), base or Base()
    wanted, room = floors(budget.picture_db, budget.snr_db, ordered), _room(budget, ordered, base)
    selection = Selection(ordered, base)
    if room is not None:
        if selection.bytes > room:
            raise UsageError(_too_small(budget, selection, base))
        _follow_curve(selection, room)
        _spend(selection, room, kept=False)
    if selection.misses(wanted):
        selection = Selection(ordered, base)
        _meet(selection, wanted)
        selection.improve(_saving(selection, wanted))
        if room is not None:
            if selection.bytes > room:
                raise UsageError(_too_large(budget, selection, base))
            _spend(selection, room, kept=True)
    return point_of(ordered, selection.chosen, base)


def keeps_to(point: Point, budget: Budget) -> bool:
    """Whether a choice is predicted to keep to all of a budget but its score."""
    return (
        (budget.picture_db is None or point.noise <= power(budget.picture_db))
        and (budget.snr_db is None or max(point.own_noise.values()) <= power(budget.snr_db))
        and (budget.bytes is None or point.bytes <= budget.bytes)
        and (budget.bits is None or point.bits <= budget.bits)
    )


def first_passing(points: Sequence[Point], passes: Callable[[Point], bool]) -> Point | None:
    """The first of some points, in order of bytes, that passes; None where the last does not.

    ``passes`` is asked about log2 of them, as if more bytes were never worse: it may build artifacts and judge them.
    """
    if not points or not passes(points[-1]):
        return None
    low, high = 0, len(points) - 1
    while low < high:
        middle = (low + high) // 2
        if passes(points[middle]):
            high = middle
        else:
            low = middle + 1
    return points[high]


def _room(budget: Budget, modules: Sequence[Module], base: Base) -> int | None:
    """Bytes that all chosen candidates together may have."""
    rooms = []
    if budget.bytes is not None:
        rooms.append(budget.bytes - base.bytes)
    if budget.bits is not None:
        rooms.append(math.floor(exact(budget.bits) * sum(module.weights for module in modules) / 8))
    return min(rooms) if rooms else None


def _follow_curve(selection: Selection, room: int) -> None:
    """To the curve's last vertex that has no more bytes."""
    for step in steps(selection.modules, picture_noise):
        if selection.bytes + step.after.bytes - step.before.bytes > room:
            return
        selection.change(step.index, step.after)


def _spend(selection: Selection, room: int, kept: bool) -> None:
    """Spend the bytes that are left where they save most noise; ``kept``: and make no component's own noise worse."""

    def gain(index: int, candidate: Candidate) -> Fraction | None:
        before = selection.chosen[index]
        more, saved = candidate.bytes - before.bytes, exact(before.noise) - exact(candidate.noise)
        if saved <= 0 or selection.bytes + more > room or (kept and candidate.own_noise > before.own_noise):
            return None
        return saved / max(more, 1)

    selection.improve(gain)


def _meet(selection: Selection, wanted: Floors) -> None:
    """Steps along the curve of both kinds of noise, each as a share of what is wanted, in modules that must improve."""
    modules = selection.modules

    def share(module: Module, candidate: Candidate) -> Fraction:
        pairs = ((candidate.noise, wanted.noise), (candidate.own_noise, wanted.own_noise.get(module.component)))
        return sum((exact(noise) / exact(most) for noise, most in pairs if most), Fraction(0))

    for index, module in enumerate(modules):
        selection.change(index, hull(module, share)[0])
    ordered = steps(modules, share)
    while selection.misses(wanted):
        taken = 0
        for step in ordered:
            # What another step made good needs no bytes of this one.
            if selection.chosen[step.index] is step.before and selection.misses(wanted, modules[step.index].component):
                selection.change(step.index, step.after)
                taken += 1
        if not taken:
            raise UsageError(_unreachable(selection, wanted))


def _saving(selection: Selection, wanted: Floors) -> Callable[[int, Candidate], Fraction | None]:
    """Bytes that a change saves without missing what is met."""

    def saved(index: int, candidate: Candidate) -> Fraction | None:
        fewer = selection.chosen[index].bytes - candidate.bytes
        return Fraction(fewer) if fewer > 0 and not selection.would_miss(wanted, index, candidate) else None

    return saved


def _too_small(budget: Budget, selection: Selection, base: Base) -> str:
    total, bits = selection.bytes + base.bytes, _bits(selection)
    return (
        f"--budget {budget.spelled}: the smallest form of every module makes {total} bytes, {bits:.3f} bits per "
        f"weight; write bytes={total} or bits={_up(bits)}, or more"
    )


def _too_large(budget: Budget, selection: Selection, base: Base) -> str:
    total, bits = selection.bytes + base.bytes, _bits(selection)
    return (
        f"--budget {budget.spelled}: this quality needs {total} bytes, {bits:.3f} bits per weight, as far as was "
        f"found; write bytes={total} and bits={_up(bits)}, or more, or ask for less quality"
    )


def _unreachable(selection: Selection, wanted: Floors) -> str:
    """The first floor that is out of reach, and how far the best forms get."""
    found = decibels(float(selection.noise))
    if wanted.noise is not None and float(selection.noise) > wanted.noise:
        return (
            f"--budget picture={decibels(wanted.noise):g}: with the best form of every module the picture is "
            f"predicted at {found:.1f} dB; write picture={_down(found)} or less"
        )
    name, most = next(
        (name, most) for name, most in sorted(wanted.own_noise.items()) if float(selection.own[name]) > most
    )
    found = decibels(float(selection.own[name]))
    return (
        f"--budget snr={decibels(most):g}: with the best form of every module {name} is predicted at "
        f"{found:.1f} dB; write snr={_down(found)} or less"
    )


def _bits(selection: Selection) -> float:
    return 8 * selection.bytes / sum(module.weights for module in selection.modules)


def _down(value: float) -> str:
    return f"{math.floor(value * 10) / 10 + 0.0:g}"


def _up(value: float) -> str:
    return f"{math.ceil(value * 100) / 100:g}"
