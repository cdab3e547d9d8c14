"""Which arithmetic a scheme asks for, and the two parts of a graph that half precision would break."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from md_export.errors import ConversionError
from md_export.spec.scheme import QuantScheme
from md_export.system.memory import let_go_of_weights
from md_export.targets.contract import LoweringJob
from md_export.targets.coreml.vendor import ct

_COMPRESSED: Final = ("int8", "int4", "palette8", "palette6", "palette4", "palette3", "palette2")
_FLOAT: Final = ("float32", "float16")
# With int8 activations a palette's table is int8 too; coremltools leaves tables of fewer than 10 entries in float.
_LEAST_BITS: Final = 4
# Of the full-size UNet 50 operations have 100 MB of weights.
_CASTS_BETWEEN: Final = 50
_TRIGONOMETRY: Final = frozenset({"sin", "cos"})
_SUMS: Final = frozenset({"add", "sub", "mul"})


class SparesFragile:
    """Op selector of coremltools' fp16 pass: false for what float16 breaks, found once per block before its first cast.

    Sines, cosines and all they are computed from: the arguments of the time embedding reach 999 radians, where
    float16 is off by up to 0.25; the embedding would be off by up to 0.32.

    The sum x0 = a·x_T + b·output of fold_x0: both terms are 14.6 times what is left of them where a checkpoint
    predicts noise, and so is their rounding. Input and output of a program are float32 anyway.
    """

    def __init__(self, now_and_then: Callable[[], None] = lambda: None) -> None:
        """``now_and_then``: called between some of the casts, each of which reads a whole weight."""
        self._spared: dict[int, frozenset[int]] = {}
        self._now_and_then, self._asked = now_and_then, 0

    def __call__(self, op: Any) -> bool:
        """Whether ``op`` may become float16."""
        self._asked += 1
        if self._asked % _CASTS_BETWEEN == 0:
            self._now_and_then()
        block = op.enclosing_block
        if id(block) not in self._spared:
            self._spared[id(block)] = frozenset(_trigonometric(block) | _last_sum(block))
        return id(op) not in self._spared[id(block)]


def _trigonometric(block: Any) -> set[int]:
    pending = [op for op in block.operations if op.op_type in _TRIGONOMETRY]
    seen: set[int] = set()
    while pending:
        op = pending.pop()
        seen.add(id(op))
        pending.extend(parent for parent in _parents(op) if id(parent) not in seen)
    return seen


def _last_sum(block: Any) -> set[int]:
    """Ops that do nothing but scale and add before an output, where one of them takes an input of the program."""
    pending = [v.op for v in block.outputs if v.op is not None and v.op.op_type in _SUMS]
    seen: dict[int, Any] = {}
    while pending:
        op = pending.pop()
        seen[id(op)] = op
        pending.extend(parent for parent in _parents(op) if parent.op_type in _SUMS and id(parent) not in seen)
    return set(seen) if any(v.op is None for op in seen.values() for v in _variables(op)) else set()


def _parents(op: Any) -> list[Any]:
    return [v.op for v in _variables(op) if v.op is not None]


def _variables(op: Any) -> list[Any]:
    return [v for value in op.inputs.values() for v in (value if isinstance(value, (list, tuple)) else (value,))]


def compute_precision(job: LoweringJob) -> Any:
    """coremltools' ``compute_precision`` for the job's scheme; int8 activations are float16 between operations.

    Raises:
        ConversionError: a pair of weights and activations that Core ML cannot store, or that the job's oldest system
            does not know; says which it can.
    """
    storages = job.scheme.storages
    unknown = next((scheme for scheme in storages if not _is_known(scheme)), None)
    if unknown is None and all(_is_float_in_int8(scheme) for scheme in storages):
        unknown = job.scheme
    if unknown is not None:
        raise ConversionError(
            f"{job.component}: Core ML has no scheme weights={unknown.weights}, activations={unknown.activations}; "
            f"choose weights/activations from float32/float32, float16/float16, or {', '.join(_COMPRESSED)} with "
            f"float16, float32 or int8_static, int8_static with palettes of {_LEAST_BITS} bits and more; "
            "a float16 part beside int8_static is float16/float16"
        )
    newer = next((found for scheme in storages if (found := _since_ios18(scheme))), None)
    if newer and job.deployment_target != "iOS18":
        raise ConversionError(f'{job.component}: {newer} needs iOS 18; set deployment_target = "iOS18" in the recipe')
    if job.scheme.activations == "float32":
        return ct.precision.FLOAT32
    return ct.transform.FP16ComputePrecision(op_selector=SparesFragile(lambda: let_go_of_weights(job.module)))


def _is_known(scheme: QuantScheme) -> bool:
    if scheme.weights in _FLOAT:
        return scheme.weights == scheme.activations or _is_float_in_int8(scheme)
    if scheme.activations == "int8_static":
        return (scheme.palette_bits or _LEAST_BITS) >= _LEAST_BITS
    return scheme.activations in _FLOAT


def _is_float_in_int8(scheme: QuantScheme) -> bool:
    """Float16 in float16 beside int8: what a rule may ask for, but no component altogether."""
    return (scheme.weights, scheme.activations) == ("float16", "int8_static")


def _since_ios18(scheme: QuantScheme) -> str | None:
    """What of the scheme older systems cannot read, after coremltools' guide ("What's New" of the optimizations)."""
    features = (
        (scheme.weights == "int4", "int4"),
        (scheme.palette_bits == 3, "a palette of 3 bits"),
        (scheme.granularity == "block", "a scale per block"),
        (scheme.granularity == "group", "a table per group"),
        (bool(scheme.palette_bits) and scheme.activations == "int8_static", "a table of int8"),
        (scheme.sparsity is not None and scheme.weights not in _FLOAT, f"sparse {scheme.weights}"),
    )
    return next((name for present, name in features if present), None)
