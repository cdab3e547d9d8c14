"""Where an artifact's estimated time goes, and what to change: each change is estimated like the artifact itself."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from md_export.diagnose.estimate.devices import Device
from md_export.diagnose.estimate.roofline import Constants, seconds_of
from md_export.targets.costs import MULTIPLYING, OpCost, bits_of

_BITS_OF_BYTE: Final = 8
# Changes that would save less are not worth a line.
_LEAST_SHARE: Final = 0.005


@dataclass(frozen=True)
class Place:
    """Operations that have something in common, and their estimated milliseconds."""

    name: str
    ops: int
    ms: float


@dataclass(frozen=True)
class Change:
    """What could be changed, and how many estimated milliseconds it would save at most; savings do not add up."""

    what: str
    ops: int
    saves_ms: float


@dataclass(frozen=True)
class _Remedy:
    """``concerns`` an operation, which ``changed`` would replace; None: it would not be there."""

    what: str
    concerns: Callable[[OpCost, Device], bool]
    changed: Callable[[OpCost, Device], OpCost | None]


def by(key: Callable[[OpCost], str], ops: Iterable[OpCost], device: Device, constants: Constants) -> tuple[Place, ...]:
    """Operations grouped by ``key``, the group that takes longest first."""
    counts: dict[str, int] = {}
    times: dict[str, float] = {}
    for op in ops:
        name = key(op)
        counts[name] = counts.get(name, 0) + 1
        times[name] = times.get(name, 0.0) + 1e3 * seconds_of(op, device, constants)
    return tuple(Place(name, counts[name], ms) for name, ms in sorted(times.items(), key=lambda item: -item[1]))


def pattern(module: str) -> str:
    """A module's path with a star for each number: ``encoder.layers.*.mlp.fc1``."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", module)


def changes(ops: Sequence[OpCost], device: Device, constants: Constants) -> tuple[Change, ...]:
    """What would save time, the change that saves most first."""
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
