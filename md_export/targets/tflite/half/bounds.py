"""Bounds and expected values of float16's error in a sum, from the terms of the sum.

Notation: u = 2^-11, the relative error of one rounding to float16; n terms t_i with sum y; A = sum |t_i|, Q = sum t_i².

    every operand rounded once, k of them in a term:       k·u·A at most           k·u²/3·Q in the mean square
    n roundings on the way of a term to its sum:           n·u·A at most, in any order and with no limit on n
        (Jeannerod and Rump, "Improved error bounds for inner products in floating-point arithmetic", 2013);
                                                           √n·u·A is the size of the probabilistic bound
        (Higham and Mary, "A new approach to probabilistic rounding error analysis", 2019), without its constant;
                                                           u²/3·((n+1)/6·Q + (n+1)/3·y²) in the mean square
        of independent roundings, over all orders of the terms: the mean of s_j² is
        j(n-j)/(n(n-1))·Q + j(j-1)/(n(n-1))·y² for the partial sum s_j of j terms
    the sum stored:                                        u·|y| at most           u²/3·y² in the mean square

A number below 2^-14 is rounded by up to 2^-25, independent of its size; the bounds include that error for every term.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from ai_edge_litert import schema_py_generated as schema
from torch import Tensor

from md_export.spec.tensors import Array, Arrays
from md_export.system.workspace import scratch_folder
from md_export.targets.lint.report import Figures, Float16Bound
from md_export.targets.operations import Op
from md_export.targets.tflite.flatbuffer import data_of, operator_name, read_model, write_rewired
from md_export.targets.tflite.half.activations import OpValues, Recorder
from md_export.targets.tflite.half.terms import TINY, UNIT, Terms, terms_of
from md_export.targets.tflite.run import load

# Number of products that ML Drift adds in float16 before it continues in float32.
BLOCK: Final = 4
NO_ERROR_DB: Final = 999.0

Precision = Literal["float16_sums", "float32_sums"]
# Precisions: older engines or those of other vendors may form all sums in float16; the default is ML Drift's F16.
_PRECISIONS: Final[tuple[Precision, Precision]] = ("float16_sums", "float32_sums")
_FLOAT32: Final = schema.TensorType.FLOAT32
_FLOAT16: Final = schema.TensorType.FLOAT16
# Ops with already rounded outputs: they only move values, or read a stored weight.
_EXACT: Final = frozenset({"RESHAPE", "TRANSPOSE", "SLICE", "PAD", "CONCATENATION", "DEQUANTIZE"})
# Figure for outputs that are not finite.
LOST_DB: Final = -999.0


@dataclass(frozen=True)
class Errors:
    """Errors of each output of one op, float64.

    Attributes:
        worst: bound for any order of the terms and any roundings.
        probable: size of the probabilistic bound.
        square: expected square of the error.
    """

    worst: Tensor
    probable: Tensor
    square: Tensor


def errors_of(terms: Terms, precision: Precision) -> Errors:
    """Return the float16 errors of one op's sums.

    Args:
        precision: ``float16_sums``: every product and partial sum is a float16 number. ``float32_sums``: products are
            added in float16 by fours and those sums in float32; sums, means and softmax are float32 inside. Operands
            and results are float16 numbers in both.
    """
    inside = terms.count if precision == "float16_sums" else _inside(terms)
    # Each product has a rounding and an addition; in pure float16, the last sum is the result.
    steps = (inside if terms.operands == 2 else inside - 1) + (terms.extra if inside > 1 else 0)
    stored = inside < terms.count or terms.divided > 1 or steps == 0
    values = terms.values.double().abs()
    tiny = TINY * terms.count * (1 + terms.operands * terms.scale) / terms.divided + TINY

    def bound(growth: float) -> Tensor:
        error = (1 + growth * UNIT) * terms.rounded + growth * UNIT * terms.sizes.double() + tiny
        return error + stored * UNIT * (values + error)

    square = terms.rounded_squares + stored * values.square() + _in_steps(terms, inside)
    floor = TINY**2 / 3 * (terms.count * (1 + terms.operands * terms.scale**2) / terms.divided**2 + 1)
    return Errors(bound(steps), bound(math.sqrt(steps)), UNIT**2 / 3 * square + floor)


def _inside(terms: Terms) -> int:
    """Return the number of terms that are added in float16 before float32; 1 for none."""
    return 1 if terms.in_float32 or terms.operands == 1 else min(BLOCK, terms.count)


def _in_steps(terms: Terms, inside: int) -> Tensor:
    """Return the mean square error, over u²/3, of products and additions in float16, in blocks of ``inside`` terms."""
    squares, values = terms.squares.double(), terms.values.double()
    product = squares if terms.operands == 2 else torch.zeros_like(squares)
    if inside == 1:
        return product
    share = (inside - 1) / (terms.count - 1)
    blocks = squares + share * (values.square() - squares).clamp(min=0)
    return product + (inside + 1) / 6 * squares + (inside + 1) / 3 * blocks


def decibels(values: Tensor, error_square: Tensor) -> float:
    """Return the power of ``values`` over that of the error in dB; 999 for zeros without an error."""
    signal, noise = float(values.double().square().sum()), float(error_square.sum())
    if signal == 0:
        return NO_ERROR_DB
    return 10 * math.log10(signal / noise)


def measure(path: Path, batches: Sequence[Arrays]) -> tuple[Float16Bound, ...]:
    """Return one entry per op with a floating-point output, in order of execution, with the least favourable case.

    Raises:
        RuntimeFault: the file does not run on these inputs.
    """
    recorder = Recorder(path)
    found: dict[str, Float16Bound] = {}
    for batch in batches:
        for values in recorder.run(batch):
            if values.output.dtype.kind == "f":
                bound = bound_of(values)
                found[bound.name] = _least(found[bound.name], bound) if bound.name in found else bound
    return tuple(found.values())


def bound_of(values: OpValues) -> Float16Bound:
    """Return the bound of one op in one run."""
    op, terms = values.op, terms_of(values)
    if terms is None:
        return _plain(op, values.output)
    float16, float32 = (_figures(terms, errors_of(terms, precision)) for precision in _PRECISIONS)
    return replace(
        _plain(op, values.output),
        terms=terms.count,
        partial_sum=float(terms.sizes.max()) * terms.divided,
        default=float32 if terms.in_float32 else float16,
        float32_sums=float32,
        float16_sums=float16,
    )


def _plain(op: Op, output: Array) -> Float16Bound:
    largest = float(np.abs(output).max(initial=0.0))
    return Float16Bound(op.name, op.kind, op.module, largest)


def _figures(terms: Terms, errors: Errors) -> Figures:
    squares = (errors.worst.square(), errors.probable.square(), errors.square)
    return Figures(*(decibels(terms.values, square) for square in squares))


def _least(one: Float16Bound, other: Float16Bound) -> Float16Bound:
    def least(left: Figures | None, right: Figures | None) -> Figures | None:
        return left.least(right) if left and right else None

    return replace(
        one,
        largest=max(one.largest, other.largest),
        partial_sum=max(one.partial_sum, other.partial_sum),
        default=least(one.default, other.default),
        float32_sums=least(one.float32_sums, other.float32_sums),
        float16_sums=least(one.float16_sums, other.float16_sums),
    )


def emulated_db(path: Path, batches: Sequence[Arrays]) -> float:
    """Return the worst SNR in dB of the outputs with float16 values and float32 sums, against float32 outputs.

    Raises:
        RuntimeFault: the file does not run on these inputs.
    """
    with scratch_folder() as scratch:
        rounded = scratch / path.name
        write_rounded(path, rounded)
        exact, half = load(path), load(rounded)
        return min(_snr_db(exact.run(batch), half.run(batch)) for batch in batches)


def _snr_db(wanted: Arrays, made: dict[str, Array]) -> float:
    worst = np.inf
    for name, value in wanted.items():
        if value.dtype.kind == "f":
            off = torch.from_numpy(made[name]).double() - torch.from_numpy(value).double()
            found = decibels(torch.from_numpy(value), off.square()) if bool(off.isfinite().all()) else LOST_DB
            worst = min(worst, found)
    return float(worst)


def write_rounded(source: Path, path: Path) -> None:
    """Write ``path``: ``source`` with every float32 value and constant rounded to float16, inputs and outputs included.

    Raises:
        RuntimeFault: ``source`` is not a .tflite file.
    """
    model = read_model(source)
    _round_constants(model)
    graph, casts = model.subgraphs[0], _Casts(model)
    operators = [cast for index in graph.inputs for cast in casts.of(int(index))]
    for operator in graph.operators:
        operator.inputs = [casts.rounded.get(int(index), int(index)) for index in operator.inputs]
        operators.append(operator)
        if operator_name(model, operator) not in _EXACT:
            operators += [cast for index in operator.outputs for cast in casts.of(int(index))]
    graph.operators = operators
    graph.outputs = [casts.rounded.get(int(index), int(index)) for index in graph.outputs]
    for entry in model.signatureDefs[0].outputs:
        entry.tensorIndex = casts.rounded.get(entry.tensorIndex, entry.tensorIndex)
    write_rewired(model, path)


def _round_constants(model: Any) -> None:
    for tensor in model.subgraphs[0].tensors:
        stored = data_of(model, tensor)
        if stored.size and tensor.type == _FLOAT32:
            with np.errstate(over="ignore"):
                half = np.asarray(stored).view(np.float32).astype(np.float16).astype(np.float32)
            model.buffers[tensor.buffer].data = half.view(np.uint8)


class _Casts:
    """Pairs of CASTs; ``rounded`` maps a tensor to the output of its second CAST."""

    def __init__(self, model: Any) -> None:
        code = schema.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.CAST
        code.version = 1
        model.operatorCodes.append(code)
        self._place = len(model.operatorCodes) - 1
        self._tensors = model.subgraphs[0].tensors
        self.rounded: dict[int, int] = {}

    def of(self, index: int) -> list[Any]:
        """Return the two ops that round a tensor; none for integers."""
        if self._tensors[index].type != _FLOAT32:
            return []
        half, back = self._like(index, _FLOAT16), self._like(index, _FLOAT32)
        self.rounded[index] = back
        return [self._cast(index, half), self._cast(half, back)]

    def _like(self, index: int, kind: int) -> int:
        tensor = copy.copy(self._tensors[index])
        tensor.type, tensor.buffer = kind, 0
        self._tensors.append(tensor)
        return len(self._tensors) - 1

    def _cast(self, source: int, made: int) -> Any:
        operator, options = schema.OperatorT(), schema.CastOptionsT()
        options.inDataType, options.outDataType = self._tensors[source].type, self._tensors[made].type
        operator.opcodeIndex, operator.inputs, operator.outputs = self._place, [source], [made]
        operator.builtinOptionsType, operator.builtinOptions = schema.BuiltinOptions.CastOptions, options
        return operator
