"""Ops that add up products: convolutions and matrix products, with a constant or a computed factor."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from ai_edge_litert import schema_py_generated as schema
from torch import Tensor

from md_export.targets.tflite.half.activations import OpValues
from md_export.targets.tflite.half.sums import Terms, tensor

_Sum = Callable[[Tensor, Tensor], Tensor]


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
    """Terms of the output that has most; to add the product with a weight of 0 costs nothing."""
    return max(int((weight != 0).flatten(1).sum(1).max()), 1)


def _bias(values: OpValues, place: int) -> Tensor | None:
    given = values.inputs[place] if len(values.inputs) > place else None
    return None if given is None else tensor(given)


def fully_connected(values: OpValues) -> Terms:
    """Weight [out, in]."""
    x, weight = tensor(values.read(0)), tensor(values.read(1))
    rows = x.reshape(-1, weight.shape[1])
    shape = values.output.shape

    def add(left: Tensor, right: Tensor) -> Tensor:
        return (left @ right.T).reshape(shape)

    return _product(values, _most(weight), rows, weight, add, _bias(values, 2))


def batch_matmul(values: OpValues) -> Terms:
    """Of the last two axes."""
    left, right = tensor(values.read(0)), tensor(values.read(1))
    left = left.mT if values.options.adjX else left
    right = right.mT if values.options.adjY else right
    return _product(values, left.shape[-1], left, right, torch.matmul, None)


def _padding(size: int, kernel: int, stride: int, dilation: int, out: int) -> tuple[int, int]:
    """Zeros before and after, as TensorFlow's SAME puts them: the odd one after."""
    total = max((out - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    return total // 2, total - total // 2


def convolution(values: OpValues) -> Terms:
    """Weight [out, kh, kw, in / groups]."""
    weight = tensor(values.read(1)).permute(0, 3, 1, 2)
    x = tensor(values.read(0)).permute(0, 3, 1, 2)
    return _conv(values, x, weight, groups=x.shape[1] // weight.shape[1])


def depthwise(values: OpValues) -> Terms:
    """Weight [1, kh, kw, out]."""
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
    """Weight [out, kh, kw, in]; reads its output's shape, the weight, the maps."""
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
