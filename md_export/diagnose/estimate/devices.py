"""The data files: phones, what others measured on them, and what the measured models compute."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any, Final, Literal

from pydantic import ConfigDict, TypeAdapter
from pydantic_core import from_json

from md_export.errors import UsageError
from md_export.targets.operations import OpCost, Work, bits_of

Parameter = Literal["convolution", "matrix_product", "multiplying", "spill", "launch"]


@dataclass(frozen=True)
class UnitClass:
    """A class of phone processors that compute alike.

    Attributes:
        targets: names of the targets whose artifacts they execute.
        fit: constants fitted to published latencies; see :class:`md_export.diagnose.estimate.roofline.Constants`.
        spill: share of activations that goes through memory, where it is not fitted.
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
            UsageError: there is none.
        """
        if name not in self.devices:
            raise UsageError(f"unknown device {name!r:.40}; known: {', '.join(self.devices)}")
        return self.devices[name]


@dataclass(frozen=True)
class PeerOps:
    """Equal operations of a peer; weights and activations in elements."""

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
