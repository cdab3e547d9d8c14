"""Ops that reduce an axis, combine two values, or apply a function to one."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from md_export.targets.tflite.half.activations import OpValues
from md_export.targets.tflite.half.sums import TINY, UNIT, Terms, tensor


def reduction(values: OpValues) -> Terms:
    """A mean's terms are its inputs over their number."""
    x, axes = tensor(values.read(0)), values.read(1)
    dims = [int(axis) % x.ndim for axis in np.atleast_1d(axes)]
    count = int(np.prod([x.shape[dim] for dim in dims]))
    out, divided = tensor(values.output), count if values.op.operator == "MEAN" else 1
    return Terms(
        count=count,
        operands=1,
        sizes=x.abs().sum(dims).reshape(out.shape) / divided,
        squares=x.square().sum(dims).reshape(out.shape) / divided**2,
        values=out,
        divided=divided,
        in_float32=True,
    )


def sum_of_two(values: OpValues) -> Terms:
    """Exact but for operands and result, whose digits count where the two nearly cancel."""
    left, right = tensor(values.read(0)), tensor(values.read(1))
    squares = left.square() + right.square()
    return Terms(2, 1, left.abs() + right.abs(), squares, tensor(values.output))


def product_of_two(values: OpValues) -> Terms:
    """A square, too."""
    out, left, right = tensor(values.output), tensor(values.read(0)), tensor(values.read(1))
    return Terms(1, 2, out.abs(), out.square(), out, scale=float(max(left.abs().max(), right.abs().max())))


def softmax(values: OpValues) -> Terms:
    """Terms are the exponentials over their sum; rounded logits move every output of their row."""
    out, logits = tensor(values.output).double(), tensor(values.read(0)).double() * float(values.options.beta)
    off, power = _off(logits), out.square() * logits.square()
    # To first order, output i moves by y_i·(d_i - Σ y_j·d_j).
    moved = logits.square() * (1 - 2 * out) + power.sum(-1, keepdim=True)
    return Terms(
        count=out.shape[-1],
        operands=1,
        sizes=out,
        squares=out.square() * out.square().sum(-1, keepdim=True),
        values=out,
        extra=2,
        in_float32=True,
        reads=(torch.maximum(_shift(out, off), _shift(out, -off)), out.square() * moved),
    )


def _off(values: Tensor) -> Tensor:
    """Largest error of one rounding."""
    return UNIT * values.abs() + TINY


def _shift(out: Tensor, off: Tensor) -> Tensor:
    """How far a softmax moves where its own logit moves by ``off`` and all others of the row by ``-off``."""
    up, down = out * off.exp(), out * (-off).exp()
    others = (down.sum(-1, keepdim=True) - down).clamp(min=0)
    return (up / (up + others).clamp(min=torch.finfo(torch.float64).tiny) - out).abs()


def rsqrt(values: OpValues) -> Terms:
    """Rises without end towards 0, so that an operand too small for float16's digits counts."""
    x, out = tensor(values.read(0)).double(), tensor(values.output).double()
    off = _off(x)
    low = torch.where(x > off, (x - off).clamp(min=TINY).rsqrt() - out, out)
    return _function(values, low, out / 2 + TINY / UNIT / 2 * out**3)


def exp(values: OpValues) -> Terms:
    """The error of its operand times the output."""
    x, out = tensor(values.read(0)).double(), tensor(values.output).double()
    return _function(values, out * _off(x).expm1(), out * x)


def logistic(values: OpValues) -> Terms:
    """Nowhere steeper than 1/4."""
    x, out = tensor(values.read(0)).double(), tensor(values.output).double()
    return _function(values, _off(x) / 4, x * out * (1 - out))


def wave(values: OpValues) -> Terms:
    """Sine and cosine of a large angle: the error of the angle."""
    x, out = tensor(values.read(0)).double(), tensor(values.output).double()
    return _function(values, _off(x).clamp(max=2), x * (1 - out.square()).clamp(min=0).sqrt())


def _function(values: OpValues, largest: Tensor, expected: Tensor) -> Terms:
    """One term, whose operand was rounded: largest error from that, and expected size over u/√3."""
    out = tensor(values.output)
    return Terms(1, 1, out.abs(), out.square(), out, reads=(largest, expected.square()))
