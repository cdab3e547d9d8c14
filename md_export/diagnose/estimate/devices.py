"""Phones, published latencies on them, and the constants of a processor class that are fitted to the latencies.

The fit tries all combinations of a grid and minimizes the sum of |log(estimate / latency)|: twice too long and half as
long weigh the same, and one outlier does not bend the rest. Each row is also predicted from a fit without it.
"""

from __future__ import annotations

import itertools
import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any, Final, Literal

import numpy as np
from pydantic import ConfigDict, TypeAdapter
from pydantic_core import from_json

from md_export.errors import UsageError
from md_export.spec.tensors import Array
from md_export.targets.operations import MULTIPLYING, OpCost, Work, bits_of

Parameter = Literal["convolution", "matrix_product", "multiplying", "spill", "launch"]


@dataclass(frozen=True)
class Constants:
    """Model constants that are fitted, or assumed, for a class of units.

    Attributes:
        convolution, matrix_product: shares of the peak that are reached; 1×1 convolutions are matrix products.
        spill: share of activations that goes through memory.
        launch_s: fixed seconds per operation, independent of its size.
    """

    convolution: float
    matrix_product: float
    spill: float
    launch_s: float

    def share_of(self, work: Work) -> float:
        """Return the share of the peak that multiplying operations reach."""
        return self.convolution if work == "convolution" else self.matrix_product


@dataclass(frozen=True)
class UnitClass:
    """A class of similar phone processors.

    Attributes:
        targets: names of the targets that they execute.
        fit: constants fitted to published latencies; see :class:`Constants`.
        spill: share of activations that goes through memory, if it is not fitted.
        float32: whether float32 values become ``float16`` or leave the processor.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    title: str
    targets: tuple[str, ...]
    fit: tuple[Parameter, ...]
    float32: Literal["float16", "leaves"]
    float32_source: str
    spill: float = 1.0
    spill_source: str = "fitted"


@dataclass(frozen=True)
class Device:
    """A phone.

    Attributes:
        peak: operations a second by arithmetic; a multiply-add is two.
        bandwidth: bytes a second of memory.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    name: str
    title: str
    unit: UnitClass
    peak: Mapping[str, float]
    peak_source: str
    bandwidth: float
    bandwidth_source: str


@dataclass(frozen=True)
class Latency:
    """A published time of one call.

    Attributes:
        peer: the model that was measured, a name in ``peers.json``.
        fit: whether constants are fitted to it; otherwise it is only compared.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    device: str
    peer: str
    ms: float
    weight_bits: float
    arithmetic: str
    source: str
    fit: bool = True
    note: str = ""


@dataclass(frozen=True)
class Knowledge:
    """The contents of both data files."""

    devices: Mapping[str, Device]
    latencies: tuple[Latency, ...]
    peers: Mapping[str, tuple[PeerOps, ...]] = field(repr=False)

    def device(self, name: str) -> Device:
        """Return the phone of that name.

        Raises:
            UsageError: there is no phone of that name.
        """
        if name not in self.devices:
            raise UsageError(f"unknown device {name!r:.40}; known: {', '.join(self.devices)}")
        return self.devices[name]


@dataclass(frozen=True)
class PeerOps:
    """A group of equal operations of a peer; weights and activations in elements."""

    work: Work
    macs: int
    weights: int
    activations: int
    number: int

    def cost(self, weight_bits: float, arithmetic: str) -> OpCost:
        """Return the cost of one operation as it was measured."""
        stored = int(self.weights * weight_bits / _BITS_OF_BYTE)
        moved = self.activations * bits_of(arithmetic) // _BITS_OF_BYTE
        return OpCost("", "", self.work, self.macs, arithmetic, self.weights, stored, moved, 0)


_BITS_OF_BYTE: Final = 8


@cache
def knowledge() -> Knowledge:
    """Return the contents of ``devices.toml`` and ``peers.json``."""
    folder = files(__package__)
    table = tomllib.loads((folder / "devices.toml").read_text(encoding="utf-8"))
    peers = from_json((folder / "peers.json").read_text(encoding="utf-8"))
    units = {name: _read(UnitClass, values) for name, values in table["class"].items()}
    return Knowledge(
        {name: _device(name, values, units) for name, values in table["device"].items()},
        tuple(_read(Latency, values) for values in table["latency"]),
        {name: tuple(PeerOps(*row) for row in rows) for name, rows in peers.items()},
    )


def _device(name: str, values: Mapping[str, Any], units: Mapping[str, UnitClass]) -> Device:
    given = {key: value for key, value in values.items() if key != "class"}
    return Device(name=name, unit=units[values["class"]], **given)


def _read(kind: type[Any], values: Mapping[str, Any]) -> Any:
    return TypeAdapter(kind).validate_json(json.dumps(values))


# Share of the rows that the printed range of an estimate covers.
LIKELY: Final = 0.8
# Grid of shares: steps of 8 %. Grid of launches: zero, then doubling from a quarter of a microsecond.
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
        fitted: estimate with constants fitted to all rows.
        without_row: estimate with constants fitted to all other rows.
        without_device: estimate with constants fitted to rows of other devices; None without other devices.
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
    """Result of a fit; ``rows`` in the order of the data file, including rows that were not fitted."""

    constants: Constants
    rows: tuple[RowError, ...]

    def factor(self, share: float) -> float:
        """Return the factor, up or down, that covers a share of the rows, each predicted by a fit without it."""
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
    """Return a row's milliseconds for each combination of the grid: :func:`seconds_of`, vectorized."""
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
