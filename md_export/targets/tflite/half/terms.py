"""Terms of the sum for each output of an op: their number, and the sums of their magnitudes and squares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from ai_edge_litert import schema_py_generated as schema
from torch import Tensor

from md_export.spec.tensors import Array
from md_export.targets.tflite.half.activations import OpValues

# Relative error of one rounding to float16, and absolute error of a subnormal number.
UNIT: Final = 2.0**-11
TINY: Final = 2.0**-25
_Sum = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Terms:
    """Sums of an op, shaped like its output; a mean's terms are its inputs divided by their number.

    Attributes:
        count: number of terms of one output, including those on padding.
        operands: number of float16 factors of one term, each rounded once: two for a product.
        sizes: sum of the magnitudes of the terms, float32; no partial sum in any order is larger.
        squares: sum of their squares, float32.
        values: output of the op, float32.
        scale: largest operand; the underflow of the other factor of a product is multiplied with it.
        divided: divisor after the sum is complete: the length of a mean.
        extra: number of roundings of a term besides those of its product and its additions.
        in_float32: whether ML Drift adds these terms in float32 in any precision.
        reads: for ops where rounded operands change the output in another way than through the terms: the largest
            such error, and its mean square over u²/3, float64.
    """

    count: int
    operands: int
    sizes: Tensor
    squares: Tensor
    values: Tensor
    scale: float = 1.0
    divided: int = 1
    extra: int = 0
    in_float32: bool = False
    reads: tuple[Tensor, Tensor] | None = None

    @property
    def rounded(self) -> Tensor:
        """Return the largest error from rounded operands, float64."""
        return self.reads[0] if self.reads else self.sizes.double() * ((1 + UNIT) ** self.operands - 1)

    @property
    def rounded_squares(self) -> Tensor:
        """Return the mean square of the error from rounded operands, over u²/3, float64."""
        return self.reads[1] if self.reads else self.operands * self.squares.double()


def tensor(values: Array) -> Tensor:
    """As float32."""
    return torch.from_numpy(np.ascontiguousarray(values, np.float32))


def _product(values: OpValues, count: int, left: Tensor, right: Tensor, add: _Sum, bias: Tensor | None) -> Terms:
    sizes, squares = add(left.abs(), right.abs()), add(left.square(), right.square())
    if bias is not None:
        sizes, squares = sizes + bias.abs(), squares + bias.square()
    return Terms(
        count=count + (bias is not None),
        operands=2,
        sizes=sizes,
        squares=squares,
        values=tensor(values.output),
        scale=float(max(left.abs().max(), right.abs().max())),
    )


def _most(weight: Tensor) -> int:
    """Return the largest number of terms of an output, without products with a weight of 0, which have no error."""
    return max(int((weight != 0).flatten(1).sum(1).max()), 1)


def _bias(values: OpValues, place: int) -> Tensor | None:
    given = values.inputs[place] if len(values.inputs) > place else None
    return None if given is None else tensor(given)


def fully_connected(values: OpValues) -> Terms:
    """Return the terms of a product with a weight [out, in]."""
    x, weight = tensor(values.read(0)), tensor(values.read(1))
    rows = x.reshape(-1, weight.shape[1])
    shape = values.output.shape

    def add(left: Tensor, right: Tensor) -> Tensor:
        return (left @ right.T).reshape(shape)

    return _product(values, _most(weight), rows, weight, add, _bias(values, 2))


def batch_matmul(values: OpValues) -> Terms:
    """Return the terms of a product over the last two axes."""
    left, right = tensor(values.read(0)), tensor(values.read(1))
    left = left.mT if values.options.adjX else left
    right = right.mT if values.options.adjY else right
    return _product(values, left.shape[-1], left, right, torch.matmul, None)


def _padding(size: int, kernel: int, stride: int, dilation: int, out: int) -> tuple[int, int]:
    """Return the padding before and after for TensorFlow's SAME: an odd zero is after."""
    total = max((out - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    return total // 2, total - total // 2


def convolution(values: OpValues) -> Terms:
    """Return the terms of a convolution with a weight [out, kh, kw, in / groups]."""
    weight = tensor(values.read(1)).permute(0, 3, 1, 2)
    x = tensor(values.read(0)).permute(0, 3, 1, 2)
    return _conv(values, x, weight, groups=x.shape[1] // weight.shape[1])


def depthwise(values: OpValues) -> Terms:
    """Return the terms of a depthwise convolution with a weight [1, kh, kw, out]."""
    weight = tensor(values.read(1)).permute(3, 0, 1, 2)
    x = tensor(values.read(0)).permute(0, 3, 1, 2)
    return _conv(values, x, weight, groups=x.shape[1])


def _conv(values: OpValues, x: Tensor, weight: Tensor, groups: int) -> Terms:
    options, (_, height, width, _) = values.options, values.output.shape
    stride, dilation = (options.strideH, options.strideW), (options.dilationHFactor, options.dilationWFactor)
    if options.padding == schema.Padding.SAME:
        top, bottom = _padding(x.shape[2], weight.shape[2], stride[0], dilation[0], height)
        left, right = _padding(x.shape[3], weight.shape[3], stride[1], dilation[1], width)
        x = F.pad(x, (left, right, top, bottom))

    def add(maps: Tensor, kernel: Tensor) -> Tensor:
        return F.conv2d(maps, kernel, None, stride, 0, dilation, groups).permute(0, 2, 3, 1)

    return _product(values, _most(weight), x, weight, add, _bias(values, 2))


def transposed(values: OpValues) -> Terms:
    """Return the terms of a transposed convolution: output shape, weight [out, kh, kw, in], maps."""
    weight, x = tensor(values.read(1)).permute(3, 0, 1, 2), tensor(values.read(2)).permute(0, 3, 1, 2)
    options, (_, height, width, _) = values.options, values.output.shape
    stride, kernel = (options.strideH, options.strideW), weight.shape[2:]
    top, left = (
        _padding(out, size, step, 1, given)[0] if options.padding == schema.Padding.SAME else 0
        for out, size, step, given in zip((height, width), kernel, stride, x.shape[2:], strict=True)
    )

    def add(maps: Tensor, weights: Tensor) -> Tensor:
        whole = F.pad(F.conv_transpose2d(maps, weights, None, stride), (0, width, 0, height))
        return whole[:, :, top : top + height, left : left + width].permute(0, 2, 3, 1)

    taps = [-(-size // step) for size, step in zip(kernel, stride, strict=True)]
    return _product(values, taps[0] * taps[1] * x.shape[1], x, weight, add, _bias(values, 3))


def reduction(values: OpValues) -> Terms:
    """Return the terms of a sum or a mean; a mean's terms are its inputs divided by their number."""
    x, axes = tensor(values.read(0)), values.read(1)
    dims = [int(axis) % x.ndim for axis in np.atleast_1d(axes)]
    count = int(np.prod([x.shape[dim] for dim in dims]))
    out, divided = tensor(values.output), count if values.op.kind == "MEAN" else 1
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
    """Return the terms of an addition: only operands and result are rounded, which matters if the two nearly cancel."""
    left, right = tensor(values.read(0)), tensor(values.read(1))
    squares = left.square() + right.square()
    return Terms(2, 1, left.abs() + right.abs(), squares, tensor(values.output))


def product_of_two(values: OpValues) -> Terms:
    """Return the terms of an elementwise product or square."""
    out, left, right = tensor(values.output), tensor(values.read(0)), tensor(values.read(1))
    return Terms(1, 2, out.abs(), out.square(), out, scale=float(max(left.abs().max(), right.abs().max())))


def softmax(values: OpValues) -> Terms:
    """Return the terms of a softmax: exponentials divided by their sum; rounded logits change all outputs of a row."""
    out, logits = tensor(values.output).double(), tensor(values.read(0)).double() * float(values.options.beta)
    off, power = _off(logits), out.square() * logits.square()
    # To first order, output i changes by y_i·(d_i - Σ y_j·d_j).
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
    """Return the largest error of one rounding."""
    return UNIT * values.abs() + TINY


def _shift(out: Tensor, off: Tensor) -> Tensor:
    """Return a softmax output's change if its logit changes by ``off`` and all others of the row by ``-off``."""
    up, down = out * off.exp(), out * (-off).exp()
    others = (down.sum(-1, keepdim=True) - down).clamp(min=0)
    return (up / (up + others).clamp(min=torch.finfo(torch.float64).tiny) - out).abs()


def rsqrt(values: OpValues) -> Terms:
    """Return the terms of rsqrt; its slope is unbounded towards 0, so subnormal operands matter."""
    x, out = tensor(values.read(0)).double(), tensor(values.output).double()
    off = _off(x)
    low = torch.where(x > off, (x - off).clamp(min=TINY).rsqrt() - out, out)
    return _function(values, low, out / 2 + TINY / UNIT / 2 * out**3)


def exp(values: OpValues) -> Terms:
    """Return the terms of exp: its error is the operand's error times the output."""
    x, out = tensor(values.read(0)).double(), tensor(values.output).double()
    return _function(values, out * _off(x).expm1(), out * x)


def logistic(values: OpValues) -> Terms:
    """Return the terms of a logistic function; its slope is at most 1/4."""
    x, out = tensor(values.read(0)).double(), tensor(values.output).double()
    return _function(values, _off(x) / 4, x * out * (1 - out))


def wave(values: OpValues) -> Terms:
    """Return the terms of sine and cosine: for large angles, the error of the angle."""
    x, out = tensor(values.read(0)).double(), tensor(values.output).double()
    return _function(values, _off(x).clamp(max=2), x * (1 - out.square()).clamp(min=0).sqrt())


def _function(values: OpValues, largest: Tensor, expected: Tensor) -> Terms:
    """Return one term with a rounded operand: largest error from the rounding, and expected size over u/√3."""
    out = tensor(values.output)
    return Terms(1, 1, out.abs(), out.square(), out, reads=(largest, expected.square()))


def terms_of(values: OpValues) -> Terms | None:
    """Return the terms of one op; None for a kind that only moves data or is unknown."""
    rule = _KINDS.get(values.op.kind)
    return rule(values) if rule else None


_KINDS: Final[Mapping[str, Callable[[OpValues], Terms]]] = {
    "FULLY_CONNECTED": fully_connected,
    "BATCH_MATMUL": batch_matmul,
    "CONV_2D": convolution,
    "DEPTHWISE_CONV_2D": depthwise,
    "TRANSPOSE_CONV": transposed,
    "MEAN": reduction,
    "SUM": reduction,
    "ADD": sum_of_two,
    "SUB": sum_of_two,
    "MUL": product_of_two,
    "SOFTMAX": softmax,
    "RSQRT": rsqrt,
    "EXP": exp,
    "LOGISTIC": logistic,
    "SIN": wave,
    "COS": wave,
}
