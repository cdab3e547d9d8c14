"""Convolutions and pools, which share their padding."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from md_export.mil.bind import Ints, Native, Tensor

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
# Elements computed at a time: their float32 copies stay in the processor's cache.
_BAND = 1 << 20
_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
Pads = list[tuple[int, int]]


def window_pads(
    pad_type: str,
    sizes: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    pad: Sequence[int] | None,
) -> Pads:
    """Elements to add before and after every spatial axis.

    ``same`` pads so that the output has ⌈size / stride⌉ elements, the odd one at the end; ``same_lower`` puts the odd
    one at the beginning.

    Raises:
        ValueError: an unknown ``pad_type``, or ``custom`` without pads.
    """
    kind = pad_type.lower()
    if kind == "valid":
        return [(0, 0)] * len(sizes)
    if kind == "custom":
        if pad is None or len(pad) != 2 * len(sizes):
            raise ValueError("pad_type custom needs two pads per spatial axis")
        return [(pad[2 * i], pad[2 * i + 1]) for i in range(len(sizes))]
    if kind not in ("same", "same_lower"):
        raise ValueError(f"pad_type {pad_type!r}")
    pads = []
    for size, k, s, d in zip(sizes, kernel, strides, dilations, strict=True):
        total = max(0, s * -(-size // s) - size + (k - 1) * d + 1 - s)
        small, large = total // 2, total - total // 2
        pads.append((small, large) if kind == "same" else (large, small))
    return pads


def conv(
    x: Native,
    weight: Tensor,
    bias: Tensor | None = None,
    strides: Ints | None = None,
    pad_type: str = "valid",
    pad: Ints | None = None,
    dilations: Ints | None = None,
    groups: int = 1,
) -> Tensor:
    """x [N, C, *D] convolved with weight [O, C/groups, *K], D of one to three axes."""
    rank = x.dim() - 2
    strides = strides or (1,) * rank
    dilations = dilations or (1,) * rank
    pads = window_pads(pad_type, x.shape[2:], weight.shape[2:], strides, dilations, pad)

    def padded(part: Tensor, pads: Pads) -> Tensor:
        if all(before == after for before, after in pads):
            return _CONV[rank](part, weight, bias, strides, [before for before, _ in pads], dilations, groups)
        return _CONV[rank](F.pad(part, _flat(pads)), weight, bias, strides, 0, dilations, groups)

    if x.dtype != torch.float16:
        return padded(x, pads)
    reach = dilations[0] * (weight.shape[2] - 1) + 1
    return _in_bands(x, weight.shape[0], padded, pads, strides[0], reach)


def _in_bands(
    x: Tensor,
    channels: int,
    convolved: Callable[[Tensor, Pads], Tensor],
    pads: Pads,
    stride: int,
    reach: int,
) -> Tensor:
    """Some rows of the first spatial axis at a time, each band rounded to x's type when it is done.

    Args:
        x: float16 [N, C, *D].
        channels: of the result.
        convolved: convolves a float32 part of x under the pads given.
        pads: before and after every spatial axis.
        stride, reach: of the window along the first of them, dilation included.
    """
    (before, after), size = pads[0], x.shape[2]
    count = (size + before + after - reach) // stride + 1
    row = max(channels, x.shape[1] * stride) * x.shape[0] * math.prod(x.shape[3:])
    step = max(1, _BAND // max(1, row))
    if step >= count:
        return convolved(x.float(), pads)
    out = torch.empty(0)
    for start in range(0, count, step):
        stop = min(start + step, count)
        first, last = start * stride - before, (stop - 1) * stride - before + reach
        outer = (max(0, -first), max(0, last - size))
        band = convolved(x[:, :, max(0, first) : min(size, last)].float(), [outer, *pads[1:]])
        if not start:
            out = x.new_empty((*band.shape[:2], count, *band.shape[3:]))
        out[:, :, start:stop] = band
    return out


def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    pad: Ints | None = None,
    output_shape: Ints | None = None,
    pad_type: str = "valid",
    strides: Ints | None = None,
    dilations: Ints | None = None,
    groups: int = 1,
) -> Tensor:
    """Gradient of a convolution: x [N, C, *D], weight [C, O/groups, *K].

    The full result is computed, then cropped, or extended by zeros, to the size the padding or ``output_shape`` asks.
    """
    rank = x.dim() - 2
    strides = strides or (1,) * rank
    dilations = dilations or (1,) * rank
    full = _TRANSPOSE[rank](x, weight, None, strides, 0, 0, groups, dilations)
    wanted = _wanted(pad_type, x.shape[2:], full.shape[2:], strides, pad, output_shape)
    for axis, (begin, size) in enumerate(wanted, start=2):
        full = _window(full, axis, begin, size)
    return full if bias is None else full + bias.reshape(-1, *[1] * rank)


def _wanted(
    pad_type: str, given: Sequence[int], full: Sequence[int], strides: Ints, pad: Ints | None, output_shape: Ints | None
) -> Pads:
    """First element and size of the result along every spatial axis of the full one."""
    wanted = []
    for i, size in enumerate(full):
        before, after = (pad[2 * i], pad[2 * i + 1]) if pad_type == "custom" and pad else (0, 0)
        target = size - before - after
        if pad_type.startswith("same"):
            target = given[i] * strides[i]
        if output_shape:
            target = output_shape[2 + i]
        if pad_type != "custom":
            surplus = max(size - target, 0)
            before = surplus - surplus // 2 if pad_type == "same_lower" else surplus // 2
        wanted.append((before, target))
    return wanted


def _window(x: Tensor, axis: int, begin: int, size: int) -> Tensor:
    missing = begin + size - x.shape[axis]
    if missing > 0:
        zeros = [*x.shape]
        zeros[axis] = missing
        x = torch.cat([x, x.new_zeros(zeros)], axis)
    return x.narrow(axis, begin, size)


def _ceil_extension(sizes: list[int], kernel: Ints, strides: Ints, pads: Pads) -> list[int]:
    """Elements to add at the end of every axis so that a last, incomplete window counts (torch's ceil_mode)."""
    extra = []
    for size, k, s, (before, after) in zip(sizes, kernel, strides, pads, strict=True):
        total = size + before + after
        count = -(-(total - k) // s) + 1
        if (count - 1) * s >= size + before and before + after > 0:
            count -= 1
        extra.append(max(0, (count - 1) * s + k - total))
    return extra


def _flat(pads: Pads) -> list[int]:
    return [amount for pair in reversed(pads) for amount in pair]


def _frame(
    x: Tensor, kernel_sizes: Ints, strides: Ints | None, pad_type: str, pad: Ints | None, ceil_mode: bool
) -> tuple[Ints, list[int], list[int]]:
    """Strides, declared padding and the extension of ceil_mode, as torch's pad takes them."""
    strides = strides or (1,) * len(kernel_sizes)
    pads = window_pads(pad_type, x.shape[2:], kernel_sizes, strides, (1,) * len(kernel_sizes), pad)
    extra = _ceil_extension(list(x.shape[2:]), kernel_sizes, strides, pads) if ceil_mode else [0] * len(pads)
    return strides, _flat(pads), _flat([(0, amount) for amount in extra])


def _sum(x: Tensor, kernel: Ints, strides: Ints) -> Tensor:
    if x.dim() == 3:
        return _sum(x[:, :, None], (1, *kernel), (1, *strides))[:, :, 0]
    pool = F.avg_pool2d if x.dim() == 4 else F.avg_pool3d
    return pool(x, kernel, strides, divisor_override=1)


def avg_pool(
    x: Tensor,
    kernel_sizes: Ints,
    strides: Ints | None = None,
    pad_type: str = "valid",
    pad: Ints | None = None,
    exclude_padding_from_average: bool = False,
    ceil_mode: bool = False,
) -> Tensor:
    """Mean of every window; zeros of the padding count unless excluded, those of ceil_mode never do."""
    strides, pads, extra = _frame(x, kernel_sizes, strides, pad_type, pad, ceil_mode)
    padded = F.pad(F.pad(x, pads), extra)
    ones = torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype)
    counted = F.pad(F.pad(ones, pads, value=0.0 if exclude_padding_from_average else 1.0), extra)
    return _sum(padded, kernel_sizes, strides) / _sum(counted, kernel_sizes, strides)


def l2_pool(
    x: Tensor,
    kernel_sizes: Ints,
    strides: Ints | None = None,
    pad_type: str = "valid",
    pad: Ints | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    """Root of the sum of squares of every window."""
    strides, pads, extra = _frame(x, kernel_sizes, strides, pad_type, pad, ceil_mode)
    return torch.sqrt(_sum(F.pad(F.pad(x * x, pads), extra), kernel_sizes, strides))


def max_pool(
    x: Tensor,
    kernel_sizes: Ints,
    strides: Ints | None = None,
    pad_type: str = "valid",
    pad: Ints | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    """Largest element of every window; padding never wins."""
    strides, pads, extra = _frame(x, kernel_sizes, strides, pad_type, pad, ceil_mode)
    padded = F.pad(F.pad(x, pads, value=float("-inf")), extra, value=float("-inf"))
    pool = {3: F.max_pool1d, 4: F.max_pool2d, 5: F.max_pool3d}[x.dim()]
    return pool(padded, kernel_sizes, strides)
