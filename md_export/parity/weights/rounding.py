"""Bound the difference between a stored weight and its tensor in the checkpoint, for each scheme.

The bound depends on the scheme and on the checkpoint's values: a scale that is too coarse for them is a fault.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from md_export.targets.stored import Float32, Palette, StoredWeight

Float64 = NDArray[np.float64]

# Relative to the largest value: rewrites and converters multiply and add in float32 in any order, with errors of a few
# units in the last place.
_FOLDING: Final = 2.0**-21
_HALF: Final = 2.0**-11
_LEAST_HALF: Final = 2.0**-25
# Float16 roundings of a compressed float16 weight: of the weight, of its scale, and of their product.
_ROUNDINGS: Final = 3
# A scale whose range exceeds the values by more than this factor is too coarse; int4 may reach 8 below and 7 above.
_COARSE: Final = 1.15
# Allowed distance of a palette entry from the mean of its members, relative to the distance to the adjacent entry:
# Lloyd's algorithm stops near its fixed point.
_OFF_MEAN: Final = 0.05


@dataclass(frozen=True)
class Misfit:
    """Description of a wrong weight; ``values``: number of its values that are off."""

    values: int
    text: str


def misfit(weight: StoredWeight, wanted: Float32) -> Misfit | None:
    """Compare a weight with ``wanted`` (as many elements, same order); None if it is right."""
    finite = np.isfinite(weight.values)
    if not finite.all():
        return Misfit(int((~finite).sum()), "holds NaN or Inf")
    values, reference = weight.values, wanted.reshape(weight.values.shape)
    faults = [
        *_sparsity_faults(weight, reference),
        *_scale_faults(weight, reference),
        *_palette_faults(weight, reference),
    ]
    error = np.abs(values - reference)
    over = error > allowed_error(weight, reference)
    if weight.kept is not None:
        over &= weight.kept
    if over.any():
        worst = float(error[over].max())
        faults.insert(0, f"{int(over.sum())} of {over.size} values are off, by up to {worst:.3g}")
    return Misfit(int(over.sum()), "; ".join(faults)) if faults else None


def allowed_error(weight: StoredWeight, wanted: Float32) -> Float32:
    """Return the largest error of each element that rounding in the weight's scheme explains, ``[*shape]``."""
    bound: Float32 = np.abs(wanted)
    folding = _FOLDING * float(bound.max(initial=0.0))
    compressed = weight.grid is not None or weight.palette is not None
    roundings = 0 if not weight.half else _ROUNDINGS if compressed else 1
    bound *= roundings * _HALF
    bound += folding + roundings * _LEAST_HALF
    if weight.grid is not None:
        bound += spread(weight.grid.steps, wanted.shape) * np.float32(0.5)
    if weight.palette is not None:
        bound += _nearest(weight.palette, wanted) + weight.palette.step
    return bound


def spread(blocks: Float32, shape: tuple[int, ...]) -> Float32:
    """Expand one value per block to one value per element, broadcast to ``shape``."""
    full = blocks
    for axis, size in enumerate(shape):
        if full.shape[axis] not in (1, size):
            full = full.repeat(size // full.shape[axis], axis)
    return np.broadcast_to(full, shape)


def _scale_faults(weight: StoredWeight, wanted: Float32) -> Iterator[str]:
    grid = weight.grid
    if grid is None or grid.levels > np.iinfo(np.int16).max:
        return
    peaks = _peaks(grid.steps.shape, wanted)
    reach = grid.steps.astype(np.float64) * grid.levels
    # Blocks of zeros may have any scale.
    coarse = (reach > _COARSE * peaks + _FOLDING * peaks.max(initial=0.0)) & (peaks > 0)
    if coarse.any():
        factor = float((reach[coarse] / peaks[coarse]).max())
        yield f"{int(coarse.sum())} of {coarse.size} scales are too coarse, by up to {factor:.3g}×"


def _peaks(counts: tuple[int, ...], wanted: Float32) -> Float64:
    """Return the largest magnitude in each block; ``counts``: number of blocks per axis."""
    split = [size for count, whole in zip(counts, wanted.shape, strict=True) for size in (count, whole // count)]
    inside = tuple(range(1, 2 * len(counts), 2))
    peaks: Float64 = np.abs(wanted.reshape(split)).max(axis=inside, initial=0.0).astype(np.float64)
    return peaks


def _sparsity_faults(weight: StoredWeight, wanted: Float32) -> Iterator[str]:
    if weight.kept is None:
        return
    magnitude = np.abs(wanted.astype(np.float64))
    dropped, kept = magnitude[~weight.kept], magnitude[weight.kept]
    if dropped.size and kept.size and dropped.max() > kept.min() * (1 + _ROUNDINGS * _HALF) + _LEAST_HALF:
        yield "it drops values that are larger than those that it keeps"


def _palette_faults(weight: StoredWeight, wanted: Float32) -> Iterator[str]:
    """Yield a fault for palette entries that differ from the mean of the values that they represent."""
    moved = 0
    for table, place in _tables(weight.palette, wanted.shape):
        kept = slice(None) if weight.kept is None else weight.kept[place]
        moved += _moved_entries(table, weight, weight.values[place][kept], wanted[place][kept])
    if moved:
        yield f"{moved} palette entries are not the mean of their values"


def _moved_entries(table: Float64, weight: StoredWeight, values: Float32, wanted: Float32) -> int:
    size, flat = len(table), wanted.ravel().astype(np.float64)
    members = np.minimum(np.searchsorted(table, values.ravel()), size - 1)
    counts = np.bincount(members, minlength=size)
    used = counts > 0
    entries, means = table[used], np.bincount(members, flat, size)[used] / counts[used]
    gaps = np.abs(np.diff(entries, prepend=entries[:1], append=entries[-1:]))
    step = weight.palette.step if weight.palette else 0.0
    rounding = _ROUNDINGS * (_HALF * np.abs(means) + _LEAST_HALF) if weight.half else np.zeros(len(means))
    share = _OFF_MEAN + _between(table, flat, step + float(rounding.max()))[used] / counts[used]
    allowed = share * np.maximum(gaps[:-1], gaps[1:]) + step + rounding
    return int((np.abs(entries - means) > allowed).sum())


def _between(table: Float64, values: Float64, rounding: float) -> Float64:
    """Return how many values each entry may have gained or lost when the table was rounded: those near a boundary."""
    edges = (table[1:] + table[:-1]) / 2
    nearest = np.clip(np.searchsorted(edges, values), 1, len(edges) - 1)
    left = np.abs(values - edges[nearest - 1]) < np.abs(values - edges[nearest])
    edge = np.where(left, nearest - 1, nearest)
    lost = edge[np.abs(values - edges[edge]) <= rounding]
    counts = np.bincount(lost, minlength=len(edges)).astype(np.float64)
    both: Float64 = np.append(counts, 0) + np.append(0, counts)
    return both


def _nearest(palette: Palette, wanted: Float32) -> Float32:
    """Return the distance of each element to the nearest entry of its table."""
    out = np.empty(wanted.shape, np.float32)
    for table, place in _tables(palette, wanted.shape):
        part = wanted[place]
        right = np.clip(np.searchsorted(table, part), 1, len(table) - 1)
        out[place] = np.minimum(np.abs(part - table[right - 1]), np.abs(part - table[right]))
    return out


def _tables(palette: Palette | None, shape: tuple[int, ...]) -> Iterator[tuple[Float64, tuple[slice, ...]]]:
    """Yield each table in ascending order, with the part of the weight that uses it."""
    if palette is None:
        return
    counts = palette.tables.shape[:-1]
    sizes = [whole // count for whole, count in zip(shape, counts, strict=True)]
    for index in np.ndindex(*counts):
        place = tuple(slice(i * size, (i + 1) * size) for i, size in zip(index, sizes, strict=True))
        yield np.sort(palette.tables[index].astype(np.float64)), place
