"""Seconds of an operation from what it computes and moves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from md_export.diagnose.estimate.devices import Device
from md_export.errors import UsageError
from md_export.targets.costs import MULTIPLYING, OpCost, Work

_HALF_BYTES: Final = 2  # bytes of float32 to one of float16


@dataclass(frozen=True)
class Constants:
    """What is fitted, or assumed, for a class of units.

    Attributes:
        convolution, matrix_product: shares of the peak that are reached; 1×1 convolutions are matrix products.
        spill: share of activations that goes through memory.
        launch_s: seconds that an operation takes whatever its size.
    """

    convolution: float
    matrix_product: float
    spill: float
    launch_s: float

    def share_of(self, work: Work) -> float:
        """Of the peak, for what multiplies."""
        return self.convolution if work == "convolution" else self.matrix_product


@dataclass(frozen=True)
class Floor:
    """What no implementation can beat: all multiply-adds at the peak, and weights read once; milliseconds."""

    arithmetic_ms: float
    memory_ms: float

    @property
    def ms(self) -> float:
        """The higher one."""
        return max(self.arithmetic_ms, self.memory_ms)


def seconds_of(op: OpCost, device: Device, constants: Constants) -> float:
    """Multiply-adds at the rate that is reached, or bytes at the memory's, whichever takes longer, and the launch.

    Raises:
        UsageError: the device computes no such values.
    """
    if op.work == "view":
        return 0.0
    arithmetic, share = as_computed(op, device)
    moved = op.weight_bytes + op.activation_bytes * share * constants.spill
    return max(_compute_s(op, arithmetic, device, constants), moved / device.bandwidth) + constants.launch_s


def floor_of(ops: Sequence[OpCost], device: Device, stored: float = math.inf) -> Floor:
    """Of one call of an artifact, each of its operations being called once; ``stored``: bytes of weights in its file.

    Constants that several operations share are read once at least, so never more than what is stored.
    """
    arithmetic = sum(2 * op.macs / _peak(as_computed(op, device)[0], device) for op in ops if op.macs)
    return Floor(1e3 * arithmetic, 1e3 * min(sum(op.weight_bytes for op in ops), stored) / device.bandwidth)


def as_computed(op: OpCost, device: Device) -> tuple[str, float]:
    """Arithmetic on the device, and which share of the file's bytes its values have there."""
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
            f"the artifact multiplies {arithmetic or 'values of a type that is not told'}, and of {device.title} only "
            f"the rate for {known} is known; export it in float16 or int8, or name another device"
        )
    return device.peak[arithmetic]
