"""Operations that build, order, join or take apart tensors."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F

from md_export.mil.bind import Ints, Stored, Tensor, Tensors


def band_part(x: Stored, lower: int = -1, upper: int = -1) -> Tensor:
    """x with zeros outside a band of its last two axes; a negative bound keeps the whole triangle."""
    rows = torch.arange(x.shape[-2])[:, None]
    columns = torch.arange(x.shape[-1])
    outside = torch.zeros(x.shape[-2:], dtype=torch.bool)
    if lower >= 0:
        outside |= rows - columns > lower
    if upper >= 0:
        outside |= columns - rows > upper
    return x.masked_fill(outside, 0)


def cumsum(x: Tensor, axis: int = 0, exclusive: bool = False, reverse: bool = False) -> Tensor:
    """Running sum along ``axis``, from the end if ``reverse``, shifted by one if ``exclusive``."""
    if reverse:
        x = x.flip(axis)
    total = torch.cumsum(x, axis, dtype=x.dtype)
    if exclusive:
        first = torch.zeros_like(total.narrow(axis, 0, 1))
        total = torch.cat([first, total.narrow(axis, 0, total.shape[axis] - 1)], axis)
    return total.flip(axis) if reverse else total


def fill(shape: Ints, value: Stored | None = None) -> Tensor:
    """A tensor of one repeated value, 0.0 if not given."""
    return (torch.zeros(()) if value is None else value.reshape(())).expand(shape).clone()


def fill_like(ref_tensor: Stored, value: Stored | None = None) -> Tensor:
    """A tensor of one repeated value in the shape of another."""
    return fill(tuple(ref_tensor.shape), value)


def non_zero(x: Stored) -> Tensor:
    """Index tuples [count, rank] of the elements that are not zero."""
    return torch.nonzero(x)


def one_hot(
    indices: Stored,
    one_hot_vector_size: int,
    axis: int = -1,
    on_value: Stored | None = None,
    off_value: Stored | None = None,
) -> Tensor:
    """``on_value`` (1) at the position each index names along a new ``axis``, ``off_value`` (0) elsewhere."""
    hit = (torch.arange(one_hot_vector_size) == indices.long()[..., None]).movedim(-1, axis)
    on = torch.ones((), dtype=torch.int32) if on_value is None else on_value.reshape(())
    off = torch.zeros((), dtype=torch.int32) if off_value is None else off_value.reshape(())
    return torch.where(hit, on, off)


def pad(x: Stored, pad: Ints, mode: str = "constant", constant_val: float = 0.0) -> Tensor:
    """x with elements added before and after its last axes: a constant, its mirror image or its edge."""
    count = len(pad) // 2
    if mode == "constant":
        flat = [amount for i in reversed(range(count)) for amount in (pad[2 * i], pad[2 * i + 1])]
        return F.pad(x, flat, value=constant_val if x.is_floating_point() else int(constant_val))
    for i in range(count):
        axis = x.dim() - count + i
        x = x.index_select(axis, _padded_positions(x.shape[axis], pad[2 * i], pad[2 * i + 1], mode))
    return x


def _padded_positions(size: int, before: int, after: int, mode: str) -> Tensor:
    positions = torch.arange(-before, size + after)
    if mode == "replicate":
        return positions.clamp(0, size - 1)
    if mode != "reflect":
        raise ValueError(f"pad mode {mode!r}")
    if max(before, after) >= size:
        raise ValueError(f"reflect padding of {max(before, after)} needs more than {size} elements")
    mirrored = positions.abs()
    return torch.where(mirrored >= size, 2 * (size - 1) - mirrored, mirrored)


def range_1d(start: Tensor, end: Tensor, step: Tensor) -> Tensor:
    """From ``start`` in steps to before ``end``; every element is start + i · step."""
    count = max(0, math.ceil((end.item() - start.item()) / step.item()))
    return start.reshape(()) + torch.arange(count, dtype=start.dtype) * step.reshape(())


def tile(x: Stored, reps: Ints) -> Tensor:
    """x repeated along every axis."""
    return x.repeat(reps)


def argsort(x: Stored, axis: int = -1, ascending: bool = False) -> Tensor:
    """Positions that sort x along ``axis``; equals keep their order."""
    return torch.argsort(x, dim=axis, descending=not ascending, stable=True)


def topk(
    x: Stored,
    k: int = 1,
    axis: int = -1,
    ascending: bool = False,
    sort: bool = True,
    return_indices: bool = True,
    output_indices_dtype: str = "int32",
) -> tuple[Tensor, ...]:
    """The k largest (smallest if ``ascending``) elements along ``axis`` in order, and their positions."""
    del sort, output_indices_dtype  # sorted is one of the orders allowed; the program declares the positions' type
    size = x.shape[axis] if k == -1 else k
    order = argsort(x, axis, ascending).narrow(axis, 0, size)
    values = torch.gather(x, axis, order)
    return (values, order) if return_indices else (values,)


def flatten2d(x: Stored, axis: int = 1) -> Tensor:
    """x as a matrix: the axes before ``axis`` joined, and the rest."""
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def shape(x: Stored) -> Tensor:
    """The shape of x as int32 [rank]."""
    return torch.tensor(x.shape, dtype=torch.int32)


def concat(values: Tensors, axis: int, interleave: bool = False) -> Tensor:
    """Joined along ``axis``, one after the other or element by element."""
    if interleave:
        axis %= values[0].dim()
        return torch.stack(values, axis + 1).flatten(axis, axis + 1)
    return torch.cat(values, axis)


def split(x: Stored, axis: int, num_splits: int | None = None, split_sizes: Ints | None = None) -> tuple[Tensor, ...]:
    """Parts of x along ``axis``, of the given sizes or equal."""
    if split_sizes is not None:
        return tuple(part.clone() for part in torch.split(x, list(split_sizes), axis))
    if not num_splits or x.shape[axis] % num_splits:
        raise ValueError(f"{x.shape[axis]} elements cannot be split into {num_splits} equal parts")
    return tuple(part.clone() for part in torch.split(x, x.shape[axis] // num_splits, axis))


def stack(values: Tensors, axis: int) -> Tensor:
    """Joined along a new ``axis``."""
    return torch.stack(values, axis)


def identity(x: Stored) -> Tensor:
    """x."""
    return x.clone()


def _axes(x: Tensor, axes: Ints | None) -> tuple[int, ...]:
    return tuple(range(x.dim())) if axes is None else tuple(axis % x.dim() for axis in axes)


def _in_own_type(x: Tensor, reduce: Callable[[Tensor], Tensor]) -> Tensor:
    """Integers are reduced in double precision and come back truncated, as numpy's results are cast."""
    return reduce(x) if x.is_floating_point() else reduce(x.double()).to(x.dtype)


def reduce_argmax(x: Stored, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32") -> Tensor:
    """Position of the largest element along ``axis``, the first of equals."""
    del output_dtype  # the program declares it as the result's type
    return torch.max(x, axis, keepdim=keep_dims).indices if x.dim() else torch.zeros((), dtype=torch.int32)


def reduce_argmin(x: Stored, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32") -> Tensor:
    """Position of the smallest element along ``axis``, the first of equals."""
    del output_dtype
    return torch.min(x, axis, keepdim=keep_dims).indices if x.dim() else torch.zeros((), dtype=torch.int32)


def reduce_l1_norm(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    """Σ |x|."""
    return _in_own_type(x, lambda v: v.abs().sum(_axes(v, axes), keepdim=keep_dims))


def reduce_l2_norm(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    """√Σ x²."""
    return _in_own_type(x, lambda v: (v * v).sum(_axes(v, axes), keepdim=keep_dims).sqrt())


def reduce_log_sum(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    """Log Σ x."""
    return _in_own_type(x, lambda v: v.sum(_axes(v, axes), keepdim=keep_dims).log())


def reduce_log_sum_exp(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    """Log Σ eˣ, without overflow."""
    return _in_own_type(x, lambda v: torch.logsumexp(v, _axes(v, axes), keepdim=keep_dims))


def reduce_max(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    """Largest element."""
    return torch.amax(x, _axes(x, axes), keepdim=keep_dims)


def reduce_mean(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    """Mean."""
    return _in_own_type(x, lambda v: v.mean(_axes(v, axes), keepdim=keep_dims))


def reduce_min(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    """Smallest element."""
    return torch.amin(x, _axes(x, axes), keepdim=keep_dims)


def reduce_prod(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    """Product."""
    for axis in sorted(_axes(x, axes), reverse=True):
        x = x.prod(axis, keepdim=keep_dims, dtype=x.dtype)
    return x


def reduce_sum(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    """Σ x."""
    return x.sum(_axes(x, axes), keepdim=keep_dims, dtype=x.dtype)


def reduce_sum_square(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    """Σ x²."""
    return (x * x).sum(_axes(x, axes), keepdim=keep_dims, dtype=x.dtype)


def read_state(input: Stored) -> Tensor:
    """A copy of the state."""
    return input.clone()


def write_state(input: Stored, data: Stored) -> Tensor:
    """The new content; the program puts it in place."""
    if input.shape != data.shape:
        raise ValueError(f"a state of shape {list(input.shape)} cannot take {list(data.shape)}")
    return data.clone()
