"""int8 activations: ranges measured by our own runtime, pairs of quantize and dequantize by coremltools' passes.

``coremltools.optimize.coreml.linear_quantize_activations`` runs the same passes, but overwrites the range of a value
with every sample, so that the last sample alone decides (coremltools 9.0, ``record_intermediate_output``).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from md_export.spec.calibration import RangeRule
from md_export.spec.tensors import Arrays
from md_export.targets.coreml import mil
from md_export.targets.coreml.vendor import cto
from md_export.targets.observers import ObserverTable

Ranges = dict[str, dict[str, float]]
_MULTIPLIES: Final = ("conv", "linear")
# A scale is range / 127 in float16; below the least normal number it would lose its digits.
_LEAST_RANGE: Final = 127 * float(np.finfo(np.float16).smallest_normal)


def measure_ranges(package: Path, calibration: Sequence[Arrays], rule: RangeRule) -> Ranges:
    """Range of every float in the program by the rule, as coremltools' passes take them.

    Raises:
        ValueError: a value passes what float16 can hold, or is NaN.
    """
    program, seen = mil.load(package), ObserverTable(rule, symmetric=True)
    for inputs in calibration:
        for name, array in inputs.items():
            seen.add(name, array)
        program.predict(inputs, observer=lambda event: _observe(seen, event))
    return {
        name: {"rmin": min(low, -_LEAST_RANGE), "rmax": max(high, _LEAST_RANGE)}
        for name, (low, high) in seen.ranges().items()
    }


def _observe(seen: ObserverTable, event: mil.Event) -> None:
    if event.tensor.is_floating_point():
        seen.add(event.name, event.tensor.float().numpy())


def quantize_activations(program: Any, ranges: Ranges, weights: frozenset[str]) -> None:
    """Put int8 before and after each convolution and linear that multiplies one of these weights.

    Symmetric, one scale per value. Values between stay in the type they have, as do the operations.
    """
    from coremltools.converters.mil.mil.passes.defs import optimize_activation_quantization as after
    from coremltools.optimize.coreml import _quantization_passes as before

    block = program.functions["main"]
    int8 = cto.OpLinearQuantizerConfig(mode="linear_symmetric", dtype="int8")
    chosen = [op for op in block.operations if op.op_type in _MULTIPLIES and op.inputs["weight"].op.name in weights]
    config = cto.OptimizationConfig(op_name_configs={op.name: int8 for op in chosen})
    prefix = before.insert_prefix_quantize_dequantize_pair(config)
    prefix.activation_stats = ranges
    prefix.apply(program)
    suffix = after.insert_suffix_quantize_dequantize_pair()
    suffix.config, suffix.activation_stats = config, ranges
    suffix.apply(program)
    for kind in ("quantize", "dequantize"):
        _share(block, kind)


def _share(block: Any, kind: str) -> None:
    """One operation per value: the passes give each consumer of a value its own, with the same scale."""
    first: dict[Any, Any] = {}
    for op in list(block.operations):
        if op.op_type != kind:
            continue
        kept = first.setdefault(op.inputs["input"], op)
        if kept is not op:
            block.replace_uses_of_var_after_op(anchor_op=op, old_var=op.outputs[0], new_var=kept.outputs[0])
            block.remove_ops([op])
