"""Observers: derive int8 ranges from the activations on calibration inputs, one tensor at a time.

Observers keep no values, only a few numbers or a histogram of fixed size. The same values in other portions or another
order give the same range, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from math import frexp
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from md_export.spec.calibration import RangeRule
from md_export.spec.tensors import Array

_Floats = NDArray[np.float64]
_Item = TypeVar("_Item")

# Bins on each side of zero. At least half of them are in use, so a bin is not wider than a step of int8 even if the
# range is 32 times smaller than the largest value. 128 KiB for each value of a graph.
_BINS: Final = 8192
# Number of values per block, so that temporary arrays fit into a processor's cache.
_BLOCK: Final = 1 << 16
# Smallest divisor in float32 without underflow.
_LEAST_WIDTH: Final = 2.0**-120
# Ranges to try for the least error: 16 per octave, down to a 32nd of the largest value. Near the minimum, the error
# changes by less than 1 % between neighbours.
_SHARES: Final[_Floats] = 2.0 ** (-np.arange(5 * 16 + 1) / 16)
_ROUNDS: Final = 3


def observer(rule: RangeRule, symmetric: bool) -> Extremes:
    """Return an observer for a rule; ``symmetric``: the target's int8 ranges are symmetric around zero."""
    if rule.observer == "percentile":
        return Percentile((rule.percentile or 100) / 100, symmetric)
    return LeastError(symmetric) if rule.observer == "mse" else Extremes()


class ObserverTable:
    """Observers of the values of a graph, by name."""

    def __init__(self, rule: RangeRule, symmetric: bool) -> None:
        self._rule, self._symmetric = rule, symmetric
        self._observers: dict[str, Extremes] = {}

    def add(self, name: str, values: Array) -> None:
        """Observe one tensor of floats; raises ValueError with the name if it contains NaN or Inf."""
        seen = self._observers.get(name) or observer(self._rule, self._symmetric)
        try:
            seen.add(values)
        except ValueError as error:
            raise ValueError(f"{name} {error}") from error
        self._observers[name] = seen

    def ranges(self) -> dict[str, tuple[float, float]]:
        """Return the least and the greatest value that int8 should represent, by name."""
        return {name: seen.bounds() for name, seen in self._observers.items()}


def portions(
    sizes: Iterable[tuple[_Item, int]], most_bytes: int, most_items: int | None = None
) -> Iterator[list[_Item]]:
    """Group items with given bytes so that each group is within the limit, or is a single larger item."""
    portion: list[_Item] = []
    left = most_bytes
    for item, size in sizes:
        if portion and (size > left or len(portion) == most_items):
            yield portion
            portion, left = [], most_bytes
        portion.append(item)
        left -= size
    if portion:
        yield portion


class Extremes:
    """Observer of the least and the greatest value."""

    def __init__(self) -> None:
        self.low, self.high = np.inf, -np.inf

    def add(self, values: Array) -> None:
        """Observe one tensor of floats; raises ValueError if it contains NaN or Inf."""
        low, high = float(np.min(values)), float(np.max(values))
        if not np.isfinite([low, high]).all():
            raise ValueError(f"reaches {low:g} to {high:g}, which has no int8 scale")
        self.low, self.high = min(self.low, low), max(self.high, high)

    def bounds(self) -> tuple[float, float]:
        """Return the least and the greatest value that int8 should represent; ValueError without any."""
        if self.low > self.high:
            raise ValueError("was never computed")
        return self.low, self.high


class Histogram(Extremes):
    """Observer that counts values in bins of equal width, a power of two that doubles when a larger value occurs.

    Then two bins are merged into one, so no count is ever divided among bins.

    Attributes:
        zeros: number of zeros; every range represents them exactly, so they are in no bin.
        counts: ``[2 * _BINS]``; bin i holds values from ``(i - _BINS) * width`` to the next.
    """

    def __init__(self) -> None:
        super().__init__()
        self.width = 0.0
        self.zeros = 0
        self.counts = np.zeros(2 * _BINS, np.int64)

    def add(self, values: Array) -> None:
        """Observe one tensor."""
        super().add(values)
        self._widen(max(abs(self.low), abs(self.high)))
        flat = np.asarray(values, np.float32).reshape(-1)
        for first in range(0, len(flat), _BLOCK):
            block = flat[first : first + _BLOCK]
            # The width is a power of two, so the division is exact: a value's bin does not depend on its portion.
            places = np.floor(block / np.float32(self.width)).astype(np.int32)
            places += _BINS
            self.counts += np.bincount(places, minlength=2 * _BINS)
        zeros = len(flat) - int(np.count_nonzero(flat))
        self.counts[_BINS] -= zeros
        self.zeros += zeros

    def _widen(self, largest: float) -> None:
        """Double the width until the largest value is inside."""
        wanted = max(_LEAST_WIDTH, 2.0 ** frexp(largest / _BINS)[1])
        self.width = self.width or wanted
        while self.width < wanted:
            pairs = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.pad(pairs, _BINS // 2)
            self.width *= 2

    @property
    def centres(self) -> _Floats:
        """Centres of the bins, ``[2 * _BINS]``."""
        return np.asarray((np.arange(2 * _BINS) - _BINS + 0.5) * self.width, np.float64)


class Percentile(Histogram):
    """Observer of the range that contains a share of the values, to the width of a bin."""

    def __init__(self, share: float, symmetric: bool) -> None:
        super().__init__()
        self._share, self._symmetric = share, symmetric

    def bounds(self) -> tuple[float, float]:
        """Return a range between edges of bins, within the observed values."""
        low, high = super().bounds()
        below, above = self.counts[:_BINS][::-1], self.counts[_BINS:]
        total = self.zeros + int(self.counts.sum())
        if self._symmetric:
            reach = self._reach(above + below, (1 - self._share) * total)
            return max(low, -reach), min(high, reach)
        cut = (1 - self._share) / 2 * total
        return max(low, -self._reach(below, cut)), min(high, self._reach(above, cut))

    def _reach(self, outward: NDArray[np.int64], cut: float) -> float:
        """Return the distance from zero that contains all but ``cut`` values; ``outward``: counts of bins from zero."""
        beyond = np.cumsum(outward[::-1])[::-1]
        return float(np.count_nonzero(beyond > cut) * self.width)


class LeastError(Histogram):
    """Observer of the range with the least sum of squared errors of clipping and rounding."""

    def __init__(self, symmetric: bool) -> None:
        super().__init__()
        self._symmetric = symmetric

    def bounds(self) -> tuple[float, float]:
        """Return the observed range, reduced below zero, above zero or on both sides."""
        low, high = super().bounds()
        kept = self.counts > 0
        values, counts = self.centres[kept], self.counts[kept].astype(np.float64)
        if self._symmetric:
            reach = max(abs(low), abs(high))
            reach *= _best([_error(values, counts, -share * reach, share * reach, 254) for share in _SHARES])
            return max(low, -reach), min(high, reach)
        least, most = min(low, 0.0), max(high, 0.0)
        below = above = 1.0
        error = cache(lambda below, above: _error(values, counts, below * least, above * most, 255))
        for _ in range(_ROUNDS):
            above = _best([error(below, share) for share in _SHARES])
            below = _best([error(share, above) for share in _SHARES])
        return max(low, below * least), min(high, above * most)


def _best(errors: list[float]) -> float:
    """Return the share with the least error; of equal ones the largest."""
    return float(_SHARES[np.argmin(errors)])


def _error(values: _Floats, counts: _Floats, low: float, high: float, steps: int) -> float:
    """Return the squared error of ``steps`` equal steps, one starting at zero, summed over values and counts."""
    step = (high - low) / steps or 1.0
    represented = np.rint(np.clip(values, low, high) / step) * step
    return float(((represented - values) ** 2) @ counts)
