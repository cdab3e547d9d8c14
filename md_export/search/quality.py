"""How good a choice really is, and how the aim of the next one follows from that."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from md_export.search.budget import Budget
from md_export.search.choice import Point

# Decibels more than was asked for that are not worth another try.
_CLOSE_DB: Final = 0.5


@dataclass(frozen=True)
class Quality:
    """Measured on golden cases, the worst of each figure.

    Attributes:
        picture_db: PSNR of the picture; None where a component is missing for it.
        snr_db: of each component's output.
    """

    picture_db: float | None
    snr_db: dict[str, float]

    def keeps_to(self, budget: Budget) -> bool:
        """Whether it is as good as the budget asks."""
        return self._room(budget) >= 0

    def is_close(self, budget: Budget) -> bool:
        """Whether it is that good, and not much better."""
        return 0 <= self._room(budget) <= _CLOSE_DB

    def _room(self, budget: Budget) -> float:
        rooms = []
        if budget.picture_db is not None and self.picture_db is not None:
            rooms.append(self.picture_db - budget.picture_db)
        rooms += [] if budget.snr_db is None else [min(self.snr_db.values()) - budget.snr_db]
        return min(rooms, default=0.0)


def next_aim(budget: Budget, point: Point, found: Quality) -> Budget:
    """The qualities to choose by so that what is asked for is found, as far as one measured choice tells.

    What was predicted of the choice, more by what it was measured short of the budget: never the same choice again.
    """
    picture, snr = budget.picture_db, budget.snr_db
    if picture is not None and found.picture_db is not None:
        picture += point.picture_db - found.picture_db
    if snr is not None:
        snr += min(point.snr_db.values()) - min(found.snr_db.values())
    return dataclasses.replace(budget, picture_db=_positive(picture), snr_db=_positive(snr))


def _positive(decibel: float | None) -> float | None:
    return decibel if decibel is None else max(decibel, 0.1)


def tries(
    budget: Budget,
    aim: Budget,
    most: int,
    choose: Callable[[Budget], Point],
    measure: Callable[[Point], Quality],
) -> Iterator[tuple[Budget, Point, Quality]]:
    """Choices, each aimed by what the one before was measured at; the last one is close, or tried as often as allowed.

    A choice that was measured before is not measured again, and nothing follows it.
    """
    seen: set[tuple[object, ...]] = set()
    for _ in range(most):
        point = choose(aim)
        key = tuple(one.form for one in point.chosen)
        if key in seen:
            return
        seen.add(key)
        found = measure(point)
        yield aim, point, found
        if found.is_close(budget):
            return
        aim = next_aim(budget, point, found)
