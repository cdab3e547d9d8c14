"""What a stored constant stands for: integers times a scale, as DequantizeLinear computes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from md_export.targets.stored import Float32, along


def dequantized(node: Any, read: Callable[[str], Any]) -> tuple[Float32, Float32]:
    """The product of a DequantizeLinear of constants, and its steps: as many axes, each of 1 or of the blocks on it.

    Args:
        node: has the names of integers, scale and, where it has one, zero point.
        read: a constant by name.
    """
    integers, scale, zero = (_read(node, position, read) for position in range(3))
    axis, block = attribute(node, "axis", 1), attribute(node, "block_size", 0)
    if block:
        steps, zero = scale, zero.repeat(block, axis) if zero.ndim else zero
        return (integers - zero) * steps.repeat(block, axis), steps
    steps = along(scale, integers.ndim, axis)
    return (integers - along(zero, integers.ndim, axis)) * steps, steps


def _read(node: Any, position: int, read: Callable[[str], Any]) -> Float32:
    name = node.input[position] if len(node.input) > position else ""
    values: Float32 = np.asarray(read(name) if name else 0, np.float32)
    return values


def attribute(node: Any, name: str, default: int) -> int:
    """An integer attribute of a node."""
    return next((int(item.i) for item in node.attribute if item.name == name), default)
