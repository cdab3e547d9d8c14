"""Estimate the time of operations from arithmetic and memory traffic, group it, and rank possible changes."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from md_export.diagnose.estimate.devices import Constants, Device
from md_export.errors import UsageError
from md_export.targets.operations import MULTIPLYING, OpCost, bits_of

_HALF_BYTES: Final = 2  # ratio of the bytes of a float32 to those of a float16


@dataclass(frozen=True)
class Floor:
    """Lower bound in milliseconds for any implementation: all multiply-adds at the peak, and weights read once."""

    arithmetic_ms: float
    memory_ms: float

    @property
    def ms(self) -> float:
        """Larger of the arithmetic and the memory time, in milliseconds."""
        return max(self.arithmetic_ms, self.memory_ms)


def seconds_of(op: OpCost, device: Device, constants: Constants) -> float:
    """Return the larger of arithmetic time at the reached rate and memory time, plus the launch, in seconds.

    Raises:
        UsageError: no rate is known for the arithmetic on this device.
    """
    if op.work == "view":
        return 0.0
    arithmetic, share = as_computed(op, device)
    moved = op.weight_bytes + op.activation_bytes * share * constants.spill
    return max(_compute_s(op, arithmetic, device, constants), moved / device.bandwidth) + constants.launch_s


def floor_of(ops: Sequence[OpCost], device: Device, stored: float = math.inf) -> Floor:
    """Return the floor of one call of an artifact; ``stored``: bytes of weights in its file.

    Constants that several operations share are read at least once, so their bytes are limited to what is stored.
    """
    arithmetic = sum(2 * op.macs / _peak(as_computed(op, device)[0], device) for op in ops if op.macs)
    return Floor(1e3 * arithmetic, 1e3 * min(sum(op.weight_bytes for op in ops), stored) / device.bandwidth)


def as_computed(op: OpCost, device: Device) -> tuple[str, float]:
    """Return the arithmetic that the device uses, and the ratio of its value size to the size in the file."""
    if op.arithmetic == "float32" and device.unit.float32 == "float16":
        return "float16", 1 / _HALF_BYTES
    return op.arithmetic, 1.0


def _compute_s(op: OpCost, arithmetic: str, device: Device, constants: Constants) -> float:
    if op.work not in MULTIPLYING or not op.macs:
        return 0.0
    return 2 * op.macs / (_peak(arithmetic, device) * constants.share_of(op.work))


def _peak(arithmetic: str, device: Device) -> float:
    if arithmetic not in device.peak:
        known = ", ".join(device.peak)
        raise UsageError(
            f"the artifact multiplies {arithmetic or 'values of an unknown type'}, but for {device.title} only "
            f"the rate for {known} is known; export it in float16 or int8, or name another device"
        )
    return device.peak[arithmetic]


_BITS_OF_BYTE: Final = 8
# Changes that would save a smaller share are not listed.
_LEAST_SHARE: Final = 0.005


@dataclass(frozen=True)
class Group:
    """Operations that have something in common, and their estimated milliseconds."""

    name: str
    ops: int
    ms: float


@dataclass(frozen=True)
class Change:
    """A possible change, and how many estimated milliseconds it saves at most; savings do not add up."""

    what: str
    ops: int
    saves_ms: float


@dataclass(frozen=True)
class _Remedy:
    """A kind of change: ``concerns`` selects operations, ``changed`` returns the replacement, None for removal."""

    what: str
    concerns: Callable[[OpCost, Device], bool]
    changed: Callable[[OpCost, Device], OpCost | None]


def grouped(
    key: Callable[[OpCost], str], ops: Iterable[OpCost], device: Device, constants: Constants
) -> tuple[Group, ...]:
    """Group operations by ``key``, the group that takes longest first."""
    counts: dict[str, int] = {}
    times: dict[str, float] = {}
    for op in ops:
        name = key(op)
        counts[name] = counts.get(name, 0) + 1
        times[name] = times.get(name, 0.0) + 1e3 * seconds_of(op, device, constants)
    return tuple(Group(name, counts[name], ms) for name, ms in sorted(times.items(), key=lambda item: -item[1]))


def pattern(module: str) -> str:
    """Return a module's path with a star for each number: ``encoder.layers.*.mlp.fc1``."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", module)


def changes(ops: Sequence[OpCost], device: Device, constants: Constants) -> tuple[Change, ...]:
    """Return the changes that would save time, the largest saving first."""
    total = sum(seconds_of(op, device, constants) for op in ops)
    found = sorted(_changes(ops, device, constants), key=lambda change: -change.saves_ms)
    return tuple(change for change in found if change.saves_ms > 1e3 * _LEAST_SHARE * total)


def _changes(ops: Sequence[OpCost], device: Device, constants: Constants) -> Iterator[Change]:
    for remedy in _REMEDIES:
        concerned = [op for op in ops if remedy.concerns(op, device)]
        saved = 0.0
        for op in concerned:
            other = remedy.changed(op, device)
            after = 0.0 if other is None else seconds_of(other, device, constants)
            saved += seconds_of(op, device, constants) - after
        yield Change(remedy.what, len(concerned), 1e3 * saved)


def _leaves(op: OpCost, device: Device) -> bool:
    return op.arithmetic == "float32" and device.unit.float32 == "leaves"


def _as_float16(op: OpCost, _: Device) -> OpCost:
    halved = (op.weight_bytes // 2, op.read_bytes // 2, op.written_bytes // 2)
    return dataclasses.replace(
        op, arithmetic="float16", weight_bytes=halved[0], read_bytes=halved[1], written_bytes=halved[2]
    )


def _stored_wider_than(bits: int) -> Callable[[OpCost, Device], bool]:
    return lambda op, _: op.work in MULTIPLYING and op.weight_bytes * _BITS_OF_BYTE > op.weights * bits > 0


def _stored_in(bits: int) -> Callable[[OpCost, Device], OpCost]:
    return lambda op, _: dataclasses.replace(op, weight_bytes=op.weights * bits // _BITS_OF_BYTE)


def _could_be_int8(op: OpCost, device: Device) -> bool:
    return op.work in MULTIPLYING and bool(op.weights) and op.arithmetic != "int8" and "int8" in device.peak


def _as_int8(op: OpCost, _: Device) -> OpCost:
    bits = max(bits_of(op.arithmetic), _BITS_OF_BYTE)
    read, written = (size * _BITS_OF_BYTE // bits for size in (op.read_bytes, op.written_bytes))
    stored = min(op.weight_bytes, op.weights)
    return dataclasses.replace(op, arithmetic="int8", weight_bytes=stored, read_bytes=read, written_bytes=written)


_REMEDIES: Final = (
    _Remedy(
        "float32 islands: in float16 they would stay on the unit (--fp16, or fewer modules kept in float32)",
        _leaves,
        _as_float16,
    ),
    _Remedy(
        "layout moves: a form of the same function without transposes (docs/rewrites.md)",
        lambda op, _: op.is_layout_move,
        lambda _op, _device: None,
    ),
    _Remedy("weights wider than 8 bits: store them in int8 (--int8)", _stored_wider_than(8), _stored_in(8)),
    _Remedy("weights wider than 4 bits: palettes or int4 (docs/compression.md)", _stored_wider_than(4), _stored_in(4)),
    _Remedy("activations in int8 for what multiplies weights (docs/quantization.md)", _could_be_int8, _as_int8),
    _Remedy(
        "operations that neither multiply nor move, such as norms and activations: fuse what can be fused",
        lambda op, _: op.work == "other",
        lambda _op, _device: None,
    ),
)
