"""Operations that move elements without computing on them."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from md_export.mil.bind import Bools, Ints, Stored, Tensor, Tensors


def depth_to_space(x: Stored, block_size: int) -> Tensor:
    """[n, C·b², H, W] → [n, C, H·b, W·b]; the block's position is the slowest part of the channel."""
    n, c, h, w = x.shape
    b = block_size
    blocks = x.reshape(n, b, b, c // (b * b), h, w)
    return blocks.permute(0, 3, 4, 1, 5, 2).reshape(n, c // (b * b), h * b, w * b)


def space_to_depth(x: Stored, block_size: int) -> Tensor:
    """The inverse of :func:`depth_to_space`."""
    n, c, h, w = x.shape
    b = block_size
    blocks = x.reshape(n, c, h // b, b, w // b, b)
    return blocks.permute(0, 3, 5, 1, 2, 4).reshape(n, c * b * b, h // b, w // b)


def space_to_batch(x: Stored, block_shape: Ints, paddings: Ints) -> Tensor:
    """[n, C, H, W], zero-padded, cut into blocks whose positions join the batch axis as its slowest part."""
    x = F.pad(x, (paddings[2], paddings[3], paddings[0], paddings[1]))
    n, c, h, w = x.shape
    bh, bw = block_shape
    blocks = x.reshape(n, c, h // bh, bh, w // bw, bw)
    return blocks.permute(3, 5, 0, 1, 2, 4).reshape(n * bh * bw, c, h // bh, w // bw)


def batch_to_space(x: Stored, block_shape: Ints, crops: Ints) -> Tensor:
    """The inverse of :func:`space_to_batch`."""
    n, c, h, w = x.shape
    bh, bw = block_shape
    joined = x.reshape(bh, bw, n // (bh * bw), c, h, w).permute(2, 3, 4, 0, 5, 1)
    spread = joined.reshape(n // (bh * bw), c, h * bh, w * bw)
    return spread[:, :, crops[0] : h * bh - crops[1], crops[2] : w * bw - crops[3]]


def pixel_shuffle(x: Stored, upscale_factor: int) -> Tensor:
    """[n, C·f², H, W] → [n, C, H·f, W·f]; the block's position is the fastest part of the channel."""
    return F.pixel_shuffle(x, upscale_factor)


def pixel_unshuffle(x: Stored, downscale_factor: int) -> Tensor:
    """The inverse of :func:`pixel_shuffle`."""
    return F.pixel_unshuffle(x, downscale_factor)


def expand_dims(x: Stored, axes: Ints) -> Tensor:
    """x with axes of size 1 at these positions of the result."""
    rank = x.dim() + len(axes)
    new = {axis % rank for axis in axes}
    sizes = iter(x.shape)
    return x.reshape([1 if i in new else next(sizes) for i in range(rank)])


def squeeze(x: Stored, axes: Ints | None = None) -> Tensor:
    """x without these axes of size 1, or all; an axis of another size stays."""
    chosen = range(x.dim()) if axes is None else {axis % x.dim() for axis in axes}
    return x.reshape([size for i, size in enumerate(x.shape) if i not in chosen or size != 1])


def reshape(x: Stored, shape: Ints) -> Tensor:
    """x in another shape; 0 copies x's axis at that position, −1 takes the rest."""
    if 0 in shape and x.numel():
        shape = tuple(size or x.shape[i] for i, size in enumerate(shape))
    return x.reshape(shape)


def reshape_ios17(x: Stored, shape: Ints) -> Tensor:
    """As :func:`reshape`, but 0 counts x's axes from the right and is 1 beyond them."""
    if 0 in shape and x.numel():
        aligned = (1,) * max(0, len(shape) - x.dim()) + tuple(x.shape[max(0, x.dim() - len(shape)) :])
        shape = tuple(size or own for size, own in zip(shape, aligned, strict=True))
    return x.reshape(shape)


def reshape_like(x: Stored, ref_tensors: Tensors, begins: Ints, ends: Ints, end_masks: Bools) -> Tensor:
    """x in the shape made of pieces of other tensors' shapes."""
    sizes: list[int] = []
    for ref, begin, end, to_the_end in zip(ref_tensors, begins, ends, end_masks, strict=True):
        sizes += ref.shape[begin:] if to_the_end else ref.shape[begin:end]
    return x.reshape(sizes)


def reverse(x: Stored, axes: Ints | None = None) -> Tensor:
    """x backwards along these axes, or all."""
    return x.flip(tuple(range(x.dim())) if axes is None else axes)


def reverse_sequence(x: Stored, lengths: Ints, seq_axis: int = 0, batch_axis: int = 0) -> Tensor:
    """The first lengths[i] elements along ``seq_axis`` backwards, for every i of ``batch_axis``."""
    result = x.clone()
    for i, length in enumerate(lengths):
        inner = seq_axis % x.dim() - (seq_axis % x.dim() > batch_axis % x.dim())
        part = x.select(batch_axis, i).narrow(inner, 0, length)
        result.select(batch_axis, i).narrow(inner, 0, length).copy_(part.flip(inner))
    return result


def _slices(
    x: Tensor, begin: Ints, end: Ints, stride: Ints | None, begin_mask: Bools | None, end_mask: Bools | None
) -> list[range]:
    """Positions along every axis, by Python's slicing rules."""
    rank = x.dim()
    steps = stride or (1,) * rank
    slices = []
    for i in range(rank):
        first = None if begin_mask and begin_mask[i] else begin[i]
        last = None if end_mask and end_mask[i] else end[i]
        slices.append(range(*slice(first, last, steps[i]).indices(x.shape[i])))
    return slices


def _squeezed(slices: list[range], x: Tensor, begin: Ints, squeeze_mask: Bools | None) -> list[range]:
    if not squeeze_mask:
        return slices
    picks = [range(b % size, b % size + 1) for b, size in zip(begin, x.shape, strict=True)]
    return [pick if mask else own for own, pick, mask in zip(slices, picks, squeeze_mask, strict=True)]


def _view(x: Tensor, slices: list[range]) -> Tensor:
    for axis, positions in enumerate(slices):
        if positions.step > 0:
            x = x[
                (slice(None),) * axis + (slice(positions.start, max(positions.stop, positions.start), positions.step),)
            ]
        else:
            x = x.index_select(axis, torch.tensor(positions, dtype=torch.long))
    return x


def slice_by_index(
    x: Stored,
    begin: Ints,
    end: Ints,
    stride: Ints | None = None,
    begin_mask: Bools | None = None,
    end_mask: Bools | None = None,
    squeeze_mask: Bools | None = None,
) -> Tensor:
    """x[begin:end:stride] along every axis; a mask opens that end, or takes one element and drops the axis."""
    picked = _view(x, _squeezed(_slices(x, begin, end, stride, begin_mask, end_mask), x, begin, squeeze_mask))
    keep = [size for i, size in enumerate(picked.shape) if not (squeeze_mask and squeeze_mask[i])]
    return picked.reshape(keep).clone()


def slice_by_size(x: Stored, begin: Ints, size: Ints) -> Tensor:
    """``size`` elements from ``begin`` along every axis; −1 takes the rest."""
    for axis, (first, count) in enumerate(zip(begin, size, strict=True)):
        start = first % x.shape[axis] if first < 0 else first
        x = x.narrow(axis, start, x.shape[axis] - start if count == -1 else count)
    return x.clone()


def slice_update(
    x: Stored,
    update: Stored,
    begin: Ints,
    end: Ints,
    stride: Ints | None = None,
    begin_mask: Bools | None = None,
    end_mask: Bools | None = None,
    squeeze_mask: Bools | None = None,
) -> Tensor:
    """x with the elements that :func:`slice_by_index` takes replaced by ``update``."""
    slices = _squeezed(_slices(x, begin, end, stride, begin_mask, end_mask), x, begin, squeeze_mask)
    result = x.clone()
    grid = torch.meshgrid(*(torch.tensor(positions, dtype=torch.long) for positions in slices), indexing="ij")
    result[grid] = update.reshape(grid[0].shape).to(result.dtype)
    return result


def sliding_windows(x: Stored, axis: int, size: int, stride: int = 1) -> Tensor:
    """Windows along ``axis``: their number there, their elements in a new axis behind it."""
    axis %= x.dim()
    return x.unfold(axis, size, stride).movedim(-1, axis + 1).clone()


def transpose(x: Stored, perm: Ints) -> Tensor:
    """x with its axes reordered."""
    return x.permute(perm).contiguous()
