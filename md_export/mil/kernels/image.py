"""Resizing of maps, and non-maximum suppression of boxes."""

from __future__ import annotations

import math
from typing import Any

import torch

from md_export.mil.bind import Ints, Stored, Tensor


def positions(start: Any, extent: Any, target: int, mode: str) -> Tensor:
    """Positions float32 [..., target] over ``extent`` from ``start`` on, by MIL's sampling modes.

    Both are numbers, or float32 [..., 1].
    """
    steps = torch.arange(target, dtype=torch.float32)
    size, gaps = extent + 1, max(target - 1, 1)
    points: Tensor
    if mode == "ALIGN_CORNERS" and target == 1:
        points = start + extent / 2 + 0 * steps
    elif mode in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"):
        points = start + steps * (extent / gaps)
    elif mode == "DEFAULT":
        points = start + steps * ((size - size / target) / gaps)
    elif mode == "OFFSET_CORNERS":
        delta = (extent.clamp(min=1) if isinstance(extent, Tensor) else max(1, extent)) / target
        points = start + 0.5 * delta + steps * delta
    elif mode == "UNALIGN_CORNERS":
        points = start + (steps + 0.5) * (size / target) - 0.5
    else:
        raise ValueError(f"sampling mode {mode!r}")
    return points


def grid(size: int, target: int, mode: str) -> Tensor:
    """Positions float32 [target] in [0, size − 1]."""
    return positions(0, size - 1, target, mode).clamp(0, size - 1)


def linear_along(x: Tensor, axis: int, points: Tensor) -> Tensor:
    """x interpolated at real positions along one axis."""
    low = points.floor().long()
    high = (low + 1).clamp(max=x.shape[axis] - 1)
    shape = [1] * x.dim()
    shape[axis] = -1
    weight = (points - low).reshape(shape)
    below = x.index_select(axis, low)
    return below + weight * (x.index_select(axis, high) - below)


def _linear(x: Tensor, points: list[Tensor]) -> Tensor:
    for offset, positions in enumerate(points):
        x = linear_along(x, x.dim() - len(points) + offset, positions)
    return x


def _nearest(x: Tensor, targets: tuple[int, int]) -> Tensor:
    height, width = x.shape[-2:]
    if not (targets[0] % height or targets[1] % width):  # whole factors: one pass instead of two gathers
        factors = targets[0] // height, targets[1] // width
        blocks = x[..., :, None, :, None].expand(*x.shape[:-1], factors[0], width, factors[1])
        return blocks.reshape(*x.shape[:-2], *targets)
    for axis, target in zip((x.dim() - 2, x.dim() - 1), targets, strict=True):
        positions = torch.arange(target) * x.shape[axis] // target
        x = x.index_select(axis, positions)
    return x


def _scaled(x: Tensor, height: float, width: float) -> tuple[int, int]:
    return math.floor(x.shape[-2] * height), math.floor(x.shape[-1] * width)


def upsample_nearest_neighbor(x: Stored, scale_factor_height: float = 1, scale_factor_width: float = 1) -> Tensor:
    """The last two axes enlarged; every output takes the input at ⌊position · size / target⌋."""
    return _nearest(x, _scaled(x, scale_factor_height, scale_factor_width))


def resize_nearest_neighbor(x: Stored, target_size_height: int, target_size_width: int) -> Tensor:
    """The last two axes brought to a size; every output takes the input at ⌊position · size / target⌋."""
    return _nearest(x, (target_size_height, target_size_width))


def upsample_bilinear(
    x: Tensor,
    scale_factor_height: float = 1,
    scale_factor_width: float = 1,
    align_corners: bool = True,
    half_pixel_centers: bool | None = None,
) -> Tensor:
    """The last two axes enlarged, bilinear; the scale is recomputed from the sizes."""
    half = not align_corners if half_pixel_centers is None else half_pixel_centers
    mode = "STRICT_ALIGN_CORNERS" if align_corners else "UNALIGN_CORNERS" if half else "DEFAULT"
    height, width = _scaled(x, scale_factor_height, scale_factor_width)
    return resize_bilinear(x, height, width, mode)


def resize_bilinear(
    x: Tensor, target_size_height: int = 1, target_size_width: int = 1, sampling_mode: str = "DEFAULT"
) -> Tensor:
    """The last two axes brought to a size, bilinear."""
    targets = (target_size_height, target_size_width)
    return _linear(x, [grid(s, t, sampling_mode) for s, t in zip(x.shape[-2:], targets, strict=True)])


def resize(
    x: Tensor, shape: Ints, resized_dims: int, interpolation_mode: str = "LINEAR", sampling_mode: str = "DEFAULT"
) -> Tensor:
    """The last ``resized_dims`` axes brought to the last sizes of ``shape``; 0 keeps a size."""
    if resized_dims == 0:
        return x.clone()
    sizes = x.shape[-resized_dims:]
    targets = [target or own for target, own in zip(shape[-resized_dims:], sizes, strict=True)]
    points = [grid(s, t, sampling_mode) for s, t in zip(sizes, targets, strict=True)]
    if interpolation_mode == "LINEAR":
        result = _linear(x.float(), points)
        return result if x.is_floating_point() else result.to(x.dtype)
    if interpolation_mode != "NEAREST_NEIGHBOR":
        raise ValueError(f"interpolation mode {interpolation_mode!r}")
    for offset, positions in enumerate(points):
        axis = x.dim() - resized_dims + offset
        x = x.index_select(axis, nearest(positions))
    return x


def nearest(points: Tensor) -> Tensor:
    """The nearest integer position, the higher of two equally near ones.

    coremltools' own test of ``resize`` wants 2/3 → 1; what Core ML does at one half is not documented.
    """
    return (points + 0.5).floor().long()


def crop(x: Stored, crop_height: Ints, crop_width: Ints) -> Tensor:
    """x without these many rows and columns at either end."""
    top, bottom = crop_height
    left, right = crop_width
    return x[..., top : x.shape[-2] - bottom, left : x.shape[-1] - right].clone()


def non_maximum_suppression(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    score_threshold: float,
    max_boxes: int,
    per_class_suppression: bool = False,
) -> tuple[Tensor, ...]:
    """iOS15: boxes [n, B, 4] as (x, y, width, height) from the centre, scores [n, B, K].

    Returns:
        boxes [n, max_boxes, 4], scores [n, max_boxes, K], indices [n, max_boxes], counts [n]; unused places hold
        zeros, and −1 as index.
    """
    parts = [
        _suppress(b, s, iou_threshold, score_threshold, max_boxes, per_class_suppression)
        for b, s in zip(boxes, scores, strict=True)
    ]
    return tuple(torch.stack(column) for column in zip(*parts, strict=True))


def non_maximum_suppression_ios17(
    boxes: Tensor, scores: Tensor, iou_threshold: float, max_boxes: int, per_class_suppression: bool = False
) -> tuple[Tensor, ...]:
    """iOS17: boxes [n, 4, B] and scores [n, K, B], no score threshold, no counts."""
    kept = non_maximum_suppression(
        boxes.transpose(1, 2), scores.transpose(1, 2), iou_threshold, float("-inf"), max_boxes, per_class_suppression
    )
    return kept[0].transpose(1, 2), kept[1].transpose(1, 2), kept[2]


def _suppress(
    boxes: Tensor, scores: Tensor, iou_threshold: float, score_threshold: float, max_boxes: int, per_class: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    best, label = scores.max(-1)
    chosen: list[int] = []
    for candidate in torch.argsort(best, descending=True, stable=True).tolist():
        if len(chosen) == max_boxes or not best[candidate] > score_threshold:
            break
        rivals = [i for i in chosen if not per_class or label[i] == label[candidate]]
        if all(_iou(boxes[candidate], boxes[i]) <= iou_threshold for i in rivals):
            chosen.append(candidate)
    count = len(chosen)
    indices = torch.full((max_boxes,), -1, dtype=torch.int32)
    indices[:count] = torch.tensor(chosen, dtype=torch.int32)
    kept_boxes = boxes.new_zeros(max_boxes, 4)
    kept_boxes[:count] = boxes[chosen]
    kept_scores = scores.new_zeros(max_boxes, scores.shape[-1])
    kept_scores[:count] = scores[chosen]
    return kept_boxes, kept_scores, indices, torch.tensor(count, dtype=torch.int32)


def _iou(a: Tensor, b: Tensor) -> float:
    low = torch.maximum(a[:2] - a[2:] / 2, b[:2] - b[2:] / 2)
    high = torch.minimum(a[:2] + a[2:] / 2, b[:2] + b[2:] / 2)
    overlap = (high - low).clamp(min=0).prod()
    return float(overlap / (a[2:].prod() + b[2:].prod() - overlap))
