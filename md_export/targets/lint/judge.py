"""The rule engine: a target's facts and rules in, a report out; rules on measured values.

One function evaluates each condition of the rules.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from math import prod
from typing import Any, Final, TypeVar

import numpy as np

from md_export.spec.tensors import Array
from md_export.targets.lint.faults import FaultyOp, FoundFault, KnownFaults
from md_export.targets.lint.report import (
    Figures,
    Float16Bound,
    Hazard,
    HazardRule,
    Limits,
    LintReport,
    OpAdvice,
    Verdict,
)
from md_export.targets.lint.rules import EngineRule, FaultFile, RuleFile, When
from md_export.targets.operations import Facts, Op

_SCALES: Final = ("scale_factor_height", "scale_factor_width")
_ATTENTION: Final = "scaled_dot_product_attention"
# Precedence of verdicts: the first of these that an applicable rule gives is the operation's verdict.
_ORDER: Final[tuple[Verdict, ...]] = ("unlikely", "unknown", "likely")
_Measured = TypeVar("_Measured", Hazard, Float16Bound)


def fits(op: Op, when: When) -> bool:
    """Whether all conditions that are given hold for ``op``."""
    return all(CONDITIONS[name](op, limit) for name, limit in when.given().items())


def exceeds(value: Hazard | Float16Bound, limits: Limits, budget_db: float) -> bool:
    """Whether all limits that are given hold for ``value``; ``budget_db``: least SNR that its error may leave."""
    return all(LIMITS[name](value, limit, budget_db) for name, limit in limits.given().items())


def _is_among(word: str, globs: tuple[str, ...]) -> bool:
    return any(fnmatchcase(word, glob) for glob in globs)


def _last_axes(op: Op) -> Iterator[int]:
    """Return the last axes' lengths of run-time outputs; weights get their layout when the program is compiled."""
    return (size for value in op.writes if not op.decodes for size in value.shape[-1:] if size is not None)


def _moves_last_axis(op: Op, _: object) -> bool:
    if order := _numbers(op, "perm"):
        return order[-1] not in (-1, len(order) - 1)
    return (op.reads or op.writes)[0].shape[-1:] != op.shape[-1:]


def _axis_among_last(op: Op, count: int) -> bool:
    # MIL's softmax defaults to the last axis.
    axis, rank = (_numbers(op, "axis") or [-1])[0], len(op.shape)
    return (axis if axis >= 0 else axis + rank) >= rank - count


def _several_heads(op: Op, _: object) -> bool:
    """Whether the op has scores ``[batch, heads, queries, keys]`` of several heads; fused attention always does."""
    return op.kind == _ATTENTION or (len(op.shape) == 4 and op.shape[1] != 1 and _axis_among_last(op, 1))


def _broadcasts(op: Op, axis: int) -> bool:
    """Whether a value that the op reads is repeated along this axis of the output, and along no other."""
    if len(op.shape) <= axis or op.shape[axis] == 1:
        return False
    once = (*op.shape[:axis], 1, *op.shape[axis + 1 :])
    return any(value.shape == once for value in op.reads)


def _mixes_ranks(op: Op, _: object) -> bool:
    lower = (value for value in op.computed if 0 < len(value.shape) < len(op.shape))
    return any(value.shape[0] != 1 for value in lower)


def _is_square(op: Op, _: object) -> bool:
    return op.shape[-2:] == op.shape[-1:] * 2


def _numbers(op: Op, *names: str) -> list[float]:
    """Return all numbers in the named constant arguments; empty if they are missing or not constant."""
    return [float(item) for name in names if name in op.constants for item in op.constants[name]().reshape(-1).tolist()]


def _over(*names: str) -> Callable[[Op, float], bool]:
    return lambda op, limit: any(number > limit for number in _numbers(op, *names))


def _stride_factor_over(op: Op, limit: int) -> bool:
    return any(_largest_factor(int(stride)) > limit for stride in _numbers(op, "strides"))


def _largest_factor(number: int) -> int:
    largest, divisor = 1, 2
    while number > 1:
        if number % divisor:
            divisor += 1
        else:
            number //= divisor
            largest = divisor
    return largest


def _weight_inputs_over(op: Op, limit: int) -> bool:
    """Whether a weight ``[out, H, W, in]``, the second value that the op reads, sums more than ``limit`` inputs."""
    return len(op.reads) > 1 and prod(size or 1 for size in op.reads[1].shape[1:]) > limit


def _floats(op: Op) -> Iterator[Array]:
    """Return the float constants that the op computes with, without those that only decode a weight."""
    values = (decode() for decode in op.constants.values() if not op.decodes)
    return (value for value in values if value.dtype.kind == "f")


def _constant_over(op: Op, limit: float) -> bool:
    """Whether a constant wider than float16 has a finite magnitude above ``limit``; float16 constants are converted."""
    wide = (np.abs(value) for value in _floats(op) if value.dtype.itemsize > 2)
    return any(bool((np.isfinite(value) & (value > limit)).any()) for value in wide)


def _number_up_to(op: Op, limit: float) -> bool:
    numbers = (abs(float(value.flat[0])) for value in _floats(op) if value.size == 1)
    return any(0 < number <= limit for number in numbers)


def _scale_per_block(op: Op, _: object) -> bool:
    scales = op.constants["scale"]().shape if "scale" in op.constants else ()
    return any(1 < count < (size or 1) for count, size in zip(scales, op.shape, strict=False))


CONDITIONS: Final[Mapping[str, Callable[[Op, Any], bool]]] = {
    "kinds": lambda op, globs: _is_among(op.kind, globs),
    "other_than": lambda op, globs: not _is_among(op.kind, globs),
    "stored": lambda op, globs: _is_among(op.stored, globs),
    "dtypes": lambda op, names: any(value.dtype in names for value in op.values),
    "rank_over": lambda op, limit: op.rank > limit,
    "output_rank": lambda op, rank: len(op.shape) == rank,
    "dynamic": lambda op, _: any(None in value.shape for value in op.values),
    "last_axis_from": lambda op, limit: any(size >= limit for size in _last_axes(op)),
    "last_axis_below": lambda op, limit: any(size < limit for size in _last_axes(op)),
    "moves_last_axis": _moves_last_axis,
    "axis_among_last": _axis_among_last,
    "square": _is_square,
    "several_heads": _several_heads,
    "broadcast_axis": _broadcasts,
    "mixed_ranks": _mixes_ranks,
    "computed_values": lambda op, least: len(op.computed) >= least,
    "batch_over": lambda op, limit: len(op.shape) > 1 and (op.shape[0] or 1) > limit,
    "wide": lambda op, _: len(op.shape) > 1 and (op.shape[-1] or 1) > (op.shape[-2] or 1),
    "last_axis_off": lambda op, unit: bool(op.shape) and (op.shape[-1] or unit) % unit != 0,
    "changes_outer_axes": lambda op, _: bool(op.reads) and op.reads[0].shape[:-1] != op.shape[:-1],
    "transposes": lambda op, operands: any(map(any, (_numbers(op, f"transpose_{name}") for name in operands))),
    "after": lambda op, globs: any(_is_among(kind, globs) for kind in op.after),
    "read_by": lambda op, globs: any(_is_among(kind, globs) for kind in op.read_by),
    "returned": lambda op, _: op.returned,
    "reads_twice": lambda op, _: op.reads_twice,
    "stride_factor_over": _stride_factor_over,
    "stride_over": _over("strides"),
    "kernel_over": _over("kernel_sizes"),
    "dilation_over": _over("dilations"),
    "scale_over": _over(*_SCALES),
    "weight_inputs_over": _weight_inputs_over,
    "infinite_constant": lambda op, _: any(bool(np.isinf(value).any()) for value in _floats(op)),
    "constant_over": _constant_over,
    "number_up_to": _number_up_to,
    "scale_per_block": _scale_per_block,
}


def _below(figures: Figures | None, budget_db: float) -> bool:
    return figures is not None and figures.expected < budget_db


def _loses(bound: Float16Bound, how: str, budget_db: float) -> bool:
    if _below(bound.float32_sums, budget_db):
        return how == "always"
    return how == "by default" and _below(bound.default, budget_db)


# Overflow counts are in a Hazard; sums and losses are figures of a Float16Bound.
LIMITS: Final[Mapping[str, Callable[[Any, Any, float], bool]]] = {
    "overflows_over": lambda value, limit, _: value.overflows > limit,
    "largest_from": lambda value, limit, _: value.largest >= limit,
    "largest_over": lambda value, limit, _: value.largest > limit,
    # A value of zeros has no error.
    "largest_below": lambda value, limit, _: 0 < value.largest < limit,
    "partial_sum_over": lambda value, limit, _: value.partial_sum > limit,
    "sums_in_float32": lambda value, expected, _: value.sums_in_float32 == expected,
    "loses": _loses,
}


def judge(file: str, facts: Facts, rules: RuleFile, system: str, faults: FaultFile) -> LintReport:
    """Judge each operation of an artifact, and the artifact as a whole, by the rules for a system.

    Args:
        file: name of the artifact.
        facts: of the artifact.
        rules: of its target.
        system: one of ``rules.systems``.
        faults: known faults of the target's runtime.
    """
    active = rules.rules_for(system)
    on_ops = [rule for rule in active if rule.when.weight_bytes_over is None]
    ops = tuple(_advice(op, on_ops) for op in facts.ops)
    remarks = tuple(
        rule.id for rule in active if rule not in on_ops and facts.weight_bytes > (rule.when.weight_bytes_over or 0)
    )
    fitting = {name for op in ops for name in op.rules} | set(remarks)
    return LintReport(
        file=file,
        system=system,
        rules_version=rules.version,
        rules=tuple(rule.bare() for rule in active if rule.id in fitting),
        ops=ops,
        layout_bytes=sum(op.bytes for op in ops if op.kind in rules.layout),
        remarks=remarks,
        hazard_rules=rules.hazard,
        engine=rules.engine,
        known=known_faults(facts.ops, faults),
    )


def known_faults(ops: Sequence[Op], file: FaultFile) -> KnownFaults:
    """Find the operations that have the form of a known fault."""
    formed = [fault for fault in file.fault if fault.when.given()]
    concerned = [(fault.bare(), tuple(op for op in ops if fits(op, fault.when))) for fault in formed]
    found = tuple(
        FoundFault(fault, tuple(FaultyOp(op.kind, op.module, op.name, op.shape) for op in where))
        for fault, where in concerned
        if where
    )
    notes = tuple(fault.bare() for fault in file.fault if fault not in formed)
    return KnownFaults(file.runtime, file.safe_from([item.fault for item in found]), found, notes)


def _advice(op: Op, rules: Sequence[EngineRule]) -> OpAdvice:
    fitting = [rule for rule in rules if fits(op, rule.when)]
    verdicts = {rule.verdict for rule in fitting}
    verdict: Verdict = next((item for item in _ORDER if item in verdicts), "unknown")
    return OpAdvice(op.name, op.kind, op.module, verdict, tuple(rule.id for rule in fitting), op.bytes)


def judged(
    values: Sequence[_Measured], rules: Sequence[HazardRule], budget_db: float = -math.inf
) -> tuple[_Measured, ...]:
    """Add to each measured value the rules that fit it, and what to do about the first.

    Args:
        values: measured, or bounded.
        rules: of the target.
        budget_db: least SNR that an operation's error may leave.
    """
    return tuple(_judged(value, [rule for rule in rules if exceeds(value, rule.when, budget_db)]) for value in values)


def _judged(value: _Measured, rules: Sequence[HazardRule]) -> _Measured:
    advice = rules[0].advice_for(value.kind) if rules else ""
    return dataclasses.replace(value, rules=tuple(rule.id for rule in rules), advice=advice)
