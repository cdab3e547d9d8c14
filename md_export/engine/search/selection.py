"""Choice under a budget: follow the curve as far as the budget allows, then use the rest for single modules."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from md_export.engine.search.frontier import (
    Base,
    Candidate,
    Module,
    Point,
    cheapest,
    decibels,
    hull,
    in_order,
    picture_noise,
    point_of,
    power,
    steps,
)
from md_export.engine.search.request import Budget
from md_export.errors import UsageError

# Returns the value of changing one module to a candidate; None if the change is not allowed.
Worth = Callable[[int, Candidate], Fraction | None]


@dataclass(frozen=True)
class Floors:
    """Minimum qualities expressed as maximum noise powers; None or a missing entry means no limit."""

    noise: float | None
    own_noise: Mapping[str, float]


def floors(picture_db: float | None, snr_db: float | None, modules: Sequence[Module]) -> Floors:
    """Convert minimum qualities of the picture and of each component's output, in decibels, to floors."""
    own = {} if snr_db is None else {module.component: power(snr_db) for module in modules}
    return Floors(None if picture_db is None else power(picture_db), own)


class Selection:
    """Mutable choice of one candidate per module; it starts with the candidates of the fewest bytes."""

    def __init__(self, modules: Sequence[Module], base: Base) -> None:
        self.modules = modules
        self.chosen = cheapest(modules)
        self.bytes = sum(one.bytes for one in self.chosen)
        self.noise = Fraction(base.noise) + sum(Fraction(one.noise) for one in self.chosen)
        self.own = {module.component: Fraction(base.own_noise.get(module.component, 0.0)) for module in modules}
        for module, one in zip(modules, self.chosen, strict=True):
            self.own[module.component] += Fraction(one.own_noise)

    def change(self, index: int, candidate: Candidate) -> None:
        """Choose another candidate for one module."""
        self.bytes += candidate.bytes - self.chosen[index].bytes
        self.noise, self.own[self.modules[index].component] = self._noises(index, candidate)
        self.chosen[index] = candidate

    def misses(self, wanted: Floors, component: str | None = None) -> bool:
        """Return whether the picture, or ``component`` (None: any component), has more noise than ``wanted`` allows."""
        names = self.own if component is None else (component,)
        return _above(self.noise, wanted.noise) or any(
            _above(self.own[name], wanted.own_noise.get(name)) for name in names
        )

    def would_miss(self, wanted: Floors, index: int, candidate: Candidate) -> bool:
        """Return whether the picture or the module's component would exceed its noise limit with this candidate."""
        noise, own = self._noises(index, candidate)
        return _above(noise, wanted.noise) or _above(own, wanted.own_noise.get(self.modules[index].component))

    def improve(self, worth: Worth) -> None:
        """Repeat the change with the highest worth until no change is allowed.

        Each change must reduce what is available for further changes, otherwise the loop does not end.
        """
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
        """Return the noise of the picture and of the module's component with this candidate."""
        before = self.chosen[index]
        return (
            self.noise + Fraction(candidate.noise) - Fraction(before.noise),
            self.own[self.modules[index].component] + Fraction(candidate.own_noise) - Fraction(before.own_noise),
        )


def _above(noise: Fraction, most: float | None) -> bool:
    # Round once, like the sums of a Point.
    return most is not None and float(noise) > most


def choose(modules: Iterable[Module], budget: Budget, base: Base | None = None) -> Point:
    """Choose the fewest bytes with the budget's quality, or the best picture within the size if the budget limits it.

    The choice is optimal if the budget for the picture or for the size is a vertex of the curve. Between two vertices
    it is at least as good as the vertex that meets the budget. The score is handled by :func:`first_passing`.

    Raises:
        UsageError: no choice meets the budget; the message contains a budget that can be met.
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
    """Return whether a choice is predicted to meet all limits of a budget except its score."""
    return (
        (budget.picture_db is None or point.noise <= power(budget.picture_db))
        and (budget.snr_db is None or max(point.own_noise.values()) <= power(budget.snr_db))
        and (budget.bytes is None or point.bytes <= budget.bytes)
        and (budget.bits is None or point.bits <= budget.bits)
    )


def first_passing(points: Sequence[Point], passes: Callable[[Point], bool]) -> Point | None:
    """Return the first point that passes, or None if the last does not; ``points`` are in order of bytes.

    Uses bisection, which assumes that more bytes are never worse. ``passes`` may build and evaluate artifacts, so it is
    called only about log2(len(points)) times.
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
    """Return the size limit for all chosen candidates together, in bytes; None if the budget sets no size limit."""
    rooms = []
    if budget.bytes is not None:
        rooms.append(budget.bytes - base.bytes)
    if budget.bits is not None:
        rooms.append(math.floor(Fraction(budget.bits) * sum(module.weights for module in modules) / 8))
    return min(rooms) if rooms else None


def _follow_curve(selection: Selection, room: int) -> None:
    """Move the selection along the curve to the last vertex with at most ``room`` bytes."""
    for step in steps(selection.modules, picture_noise):
        if selection.bytes + step.after.bytes - step.before.bytes > room:
            return
        selection.change(step.index, step.after)


def _spend(selection: Selection, room: int, kept: bool) -> None:
    """Spend the remaining bytes where they save most noise per byte.

    ``kept``: do not increase the noise of any component's output.
    """

    def gain(index: int, candidate: Candidate) -> Fraction | None:
        before = selection.chosen[index]
        more, saved = candidate.bytes - before.bytes, Fraction(before.noise) - Fraction(candidate.noise)
        if saved <= 0 or selection.bytes + more > room or (kept and candidate.own_noise > before.own_noise):
            return None
        return saved / max(more, 1)

    selection.improve(gain)


def _meet(selection: Selection, wanted: Floors) -> None:
    """Take steps in the modules that must improve until the selection meets the floors.

    The steps follow a curve whose cost is the sum of both kinds of noise, each relative to its limit.

    Raises:
        UsageError: the floors cannot be met.
    """
    modules = selection.modules

    def share(module: Module, candidate: Candidate) -> Fraction:
        pairs = ((candidate.noise, wanted.noise), (candidate.own_noise, wanted.own_noise.get(module.component)))
        return sum((Fraction(noise) / Fraction(most) for noise, most in pairs if most), Fraction(0))

    for index, module in enumerate(modules):
        selection.change(index, hull(module, share)[0])
    ordered = steps(modules, share)
    while selection.misses(wanted):
        taken = 0
        for step in ordered:
            # If earlier steps already met this component's floor, this step would waste bytes.
            if selection.chosen[step.index] is step.before and selection.misses(wanted, modules[step.index].component):
                selection.change(step.index, step.after)
                taken += 1
        if not taken:
            raise UsageError(_unreachable(selection, wanted))


def _saving(selection: Selection, wanted: Floors) -> Callable[[int, Candidate], Fraction | None]:
    """Return a function for the bytes that a change saves; None for changes that would violate the floors."""

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
    """Return the error message for the first floor that cannot be met, with the best quality that is possible."""
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
