"""The few constants of a class of units, from latencies that others published; each is also predicted without itself.

All combinations of a grid are tried; the best has the least sum of absolute logarithms of estimate over latency, so
that twice too long and half as long weigh alike and one odd row does not bend the rest.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np

from md_export.diagnose.estimate.devices import Device, Knowledge, Latency, Parameter, UnitClass, knowledge
from md_export.diagnose.estimate.roofline import Constants
from md_export.spec.tensors import Array
from md_export.targets.operations import MULTIPLYING

# Share of the rows inside the range that is printed with an estimate.
LIKELY: Final = 0.8
# Shares: 8 % from one to the next. Launches: nothing, and from a quarter of a microsecond on the double each.
_SHARES: Final = tuple(float(share) for share in np.geomspace(0.05, 1.0, 41))
_LAUNCHES: Final = (0.0, *(0.25e-6 * 2**power for power in range(7)))
_STEPS: Final[Mapping[Parameter, tuple[float, ...]]] = {
    "convolution": _SHARES,
    "matrix_product": _SHARES,
    "multiplying": _SHARES,
    "spill": _SHARES,
    "launch": _LAUNCHES,
}


@dataclass(frozen=True)
class RowError:
    """A published latency and the fit's estimates of it, in milliseconds.

    Attributes:
        fitted: by the constants fitted to all rows.
        without_row: by those fitted to all other rows.
        without_device: by those fitted to the rows of other devices; None where there is no other.
    """

    latency: Latency
    fitted: float
    without_row: float
    without_device: float | None

    @property
    def factor(self) -> float:
        """Ratio of the estimate without this row to the latency."""
        return self.without_row / self.latency.ms


@dataclass(frozen=True)
class Fit:
    """``rows`` in the order of the data file, those that were only compared with included."""

    constants: Constants
    rows: tuple[RowError, ...]

    def factor(self, share: float) -> float:
        """Return the factor, up or down, within which that share of the rows lies, each predicted without itself."""
        apart = np.array([abs(math.log(row.factor)) for row in self.rows])
        return math.exp(float(np.quantile(apart, share, method="higher")))


@cache
def fit_of(unit: str) -> Fit:
    """Return the fit of a class of processors, by its title."""
    known = knowledge()
    devices = {name: device for name, device in known.devices.items() if device.unit.title == unit}
    return fit(known, devices)


def fit(known: Knowledge, devices: Mapping[str, Device]) -> Fit:
    """Fit the constants of devices of one class."""
    (unit,) = {device.unit.title: device.unit for device in devices.values()}.values()
    rows = [row for row in known.latencies if row.device in devices]
    grid = _grid(unit)
    times = np.stack([_times(known, devices[row.device], row, grid) for row in rows], axis=1)
    errors = np.abs(np.log(times / np.array([row.ms for row in rows])))
    taught = np.array([row.fit for row in rows])
    found = [_row(rows, number, times, errors, taught) for number in range(len(rows))]
    return Fit(grid[_best(errors, taught)], tuple(found))


def _row(rows: Sequence[Latency], number: int, times: Array, errors: Array, taught: Array) -> RowError:
    others = taught & (np.arange(len(rows)) != number)
    strangers = taught & np.array([row.device != rows[number].device for row in rows])
    columns = [times[_best(errors, mask), number] if mask.any() else None for mask in (taught, others, strangers)]
    fitted, without_row, without_device = [None if ms is None else float(ms) for ms in columns]
    assert fitted is not None and without_row is not None  # noqa: S101 (a class has several rows)
    return RowError(rows[number], fitted, without_row, without_device)


def _best(errors: Array, rows: Array) -> int:
    return int(np.argmin(errors[:, rows].sum(axis=1)))


def _grid(unit: UnitClass) -> list[Constants]:
    steps = itertools.product(*(_STEPS[name] for name in unit.fit))
    return [_constants(unit, dict(zip(unit.fit, combination, strict=True))) for combination in steps]


def _constants(unit: UnitClass, fitted: Mapping[Parameter, float]) -> Constants:
    both = fitted.get("multiplying", 1.0)
    return Constants(
        convolution=fitted.get("convolution", both),
        matrix_product=fitted.get("matrix_product", both),
        spill=fitted.get("spill", unit.spill),
        launch_s=fitted.get("launch", 0.0),
    )


def _times(known: Knowledge, device: Device, row: Latency, grid: Sequence[Constants]) -> Array:
    """Milliseconds of a row for each combination: :func:`seconds_of` of its operations, for all of them at once."""
    found = np.zeros(len(grid))
    shares = {work: np.array([constants.share_of(work) for constants in grid]) for work in MULTIPLYING}
    spill, launch = (np.array([getattr(constants, name) for constants in grid]) for name in ("spill", "launch_s"))
    for peer_op in known.peers[row.peer]:
        op = peer_op.cost(row.weight_bits, row.arithmetic)
        if op.work == "view":
            continue
        computing = 2 * op.macs / (device.peak[row.arithmetic] * shares[op.work]) if op.work in shares else 0.0
        moving = (op.weight_bytes + op.activation_bytes * spill) / device.bandwidth
        found += 1e3 * peer_op.number * (np.maximum(computing, moving) + launch)
    return found
