"""Which arithmetic a scheme asks for, and the one part of the graph that half precision would break."""

from __future__ import annotations

from typing import Any, Final

from md_export.errors import ConversionError
from md_export.recipe import QuantScheme
from md_export.targets.coreml.vendor import ct

# (weights, activations) that a Core ML program can say without casts at run time.
SCHEMES: Final = (("float32", "float32"), ("float16", "float16"), ("int8", "float16"), ("int8", "float32"))
_TRIGONOMETRY: Final = frozenset({"sin", "cos"})


class SparesTrigonometry:
    """Op selector of coremltools' fp16 pass: false for sines, cosines and all they are computed from.

    The arguments of the time embedding reach 999 radians, where float16 is off by up to 0.25; the
    embedding would be off by up to 0.32. The ancestors of sines and cosines are collected once per
    block, before the pass has inserted its first cast.
    """

    def __init__(self) -> None:
        self._spared: dict[int, frozenset[int]] = {}

    def __call__(self, op: Any) -> bool:
        """Whether ``op`` may become float16."""
        block = op.enclosing_block
        if id(block) not in self._spared:
            self._spared[id(block)] = frozenset(_trigonometric(block))
        return id(op) not in self._spared[id(block)]


def _trigonometric(block: Any) -> set[int]:
    pending = [op for op in block.operations if op.op_type in _TRIGONOMETRY]
    seen: set[int] = set()
    while pending:
        op = pending.pop()
        seen.add(id(op))
        pending.extend(parent for parent in _parents(op) if id(parent) not in seen)
    return seen


def _parents(op: Any) -> list[Any]:
    variables = [v for value in op.inputs.values() for v in (value if isinstance(value, (list, tuple)) else (value,))]
    return [v.op for v in variables if v.op is not None]


def compute_precision(component: str, scheme: QuantScheme) -> Any:
    """coremltools' ``compute_precision`` for a scheme.

    Raises:
        ConversionError: a pair of weights and activations that Core ML cannot store; lists those it can.
    """
    if (scheme.weights, scheme.activations) not in SCHEMES:
        allowed = ", ".join(f"{w}/{a}" for w, a in SCHEMES)
        raise ConversionError(
            f"{component}: Core ML has no scheme weights={scheme.weights}, activations={scheme.activations}; "
            f"choose weights/activations from {allowed}"
        )
    if scheme.activations == "float32":
        return ct.precision.FLOAT32
    return ct.transform.FP16ComputePrecision(op_selector=SparesTrigonometry())
