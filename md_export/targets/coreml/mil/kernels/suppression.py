"""Non-maximum suppression of boxes."""

from __future__ import annotations

import torch

from md_export.targets.coreml.mil.bind import Tensor


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
