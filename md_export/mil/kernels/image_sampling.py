"""Sampling an image at computed positions."""

from __future__ import annotations

import torch

from md_export.mil.bind import Tensor
from md_export.mil.kernels.image import positions


def _taps(x: Tensor, rows: Tensor, columns: Tensor, mode: str, value: float) -> Tensor:
    """x [B, C, H, W] at integer positions [B, *P], padded by ``mode`` → [B, C, *P]."""
    height, width = x.shape[-2:]
    outside = (rows < 0) | (rows >= height) | (columns < 0) | (columns >= width)
    flat = _inside(rows, height, mode) * width + _inside(columns, width, mode)
    index = flat.reshape(flat.shape[0], 1, -1).expand(-1, x.shape[1], -1)
    found = x.flatten(2).gather(2, index).reshape(*x.shape[:2], *rows.shape[1:])
    return found.masked_fill(outside[:, None], value) if mode == "constant" else found


def _inside(positions: Tensor, size: int, mode: str) -> Tensor:
    positions = positions.long()
    if mode in ("constant", "border"):
        return positions.clamp(0, size - 1)
    if mode == "symmetric":
        folded = positions.remainder(2 * size)
        return torch.where(folded >= size, 2 * size - 1 - folded, folded)
    if mode == "reflection":
        period = max(2 * (size - 1), 1)
        folded = positions.remainder(period)
        return torch.where(folded >= size, period - folded, folded)
    raise ValueError(f"padding mode {mode!r}")


def sample(x: Tensor, rows: Tensor, columns: Tensor, sampling: str, padding: str, value: float) -> Tensor:
    """x [B, C, H, W] at real positions [B, *P] → [B, C, *P]; the nearest of two equally near is the higher one."""
    if sampling == "nearest":
        return _taps(x, (rows + 0.5).floor(), (columns + 0.5).floor(), padding, value)
    if sampling != "bilinear":
        raise ValueError(f"sampling mode {sampling!r}")
    top, left = rows.floor(), columns.floor()
    down, right = (rows - top)[:, None], (columns - left)[:, None]
    upper = _taps(x, top, left, padding, value) * (1 - right) + _taps(x, top, left + 1, padding, value) * right
    lower = _taps(x, top + 1, left, padding, value) * (1 - right) + _taps(x, top + 1, left + 1, padding, value) * right
    return upper * (1 - down) + lower * down


def _denormalize(points: Tensor, size: int, mode: str, align_corners: bool) -> Tensor:
    if mode == "unnormalized":
        return points
    if mode == "normalized_minus_one_to_one":
        points = (points + 1) / 2
    elif mode != "normalized_zero_to_one":
        raise ValueError(f"coordinates mode {mode!r}")
    return points * (size - 1) if align_corners else points * size - 0.5


def resample(
    x: Tensor,
    coordinates: Tensor,
    sampling_mode: str,
    padding_mode: str,
    padding_value: float,
    coordinates_mode: str,
    align_corners: bool,
) -> Tensor:
    """x [B, C, H, W] at (column, row) coordinates [B, H', W', 2] → [B, C, H', W']."""
    points = coordinates.float()
    columns = _denormalize(points[..., 0], x.shape[-1], coordinates_mode, align_corners)
    rows = _denormalize(points[..., 1], x.shape[-2], coordinates_mode, align_corners)
    return sample(x, rows, columns, sampling_mode, padding_mode, padding_value)


def affine(
    x: Tensor,
    transform_matrix: Tensor,
    output_height: int,
    output_width: int,
    sampling_mode: str,
    padding_mode: str,
    padding_value: float,
    coordinates_mode: str,
    align_corners: bool,
) -> Tensor:
    """x [B, C, H, W] at affinely transformed coordinates of the output; matrix [B or 1, 6], output in [−1, 1]."""
    if coordinates_mode != "normalized_minus_one_to_one" or not align_corners:
        raise ValueError(f"affine with coordinates mode {coordinates_mode!r}, align_corners {align_corners}")
    rows = torch.linspace(-1, 1, output_height)[:, None].expand(output_height, output_width)
    columns = torch.linspace(-1, 1, output_width).expand(output_height, output_width)
    m = transform_matrix.expand(x.shape[0], 6)[:, :, None, None]
    coordinates = torch.stack(
        [m[:, 0] * columns + m[:, 1] * rows + m[:, 2], m[:, 3] * columns + m[:, 4] * rows + m[:, 5]], -1
    )
    return resample(x, coordinates, sampling_mode, padding_mode, padding_value, coordinates_mode, align_corners)


def _corners(boxes: Tensor, mode: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Top, left, bottom and right of boxes [N, 4]."""
    a, b, c, d = boxes.unbind(-1)
    if mode == "CORNERS_HEIGHT_FIRST":
        return a, b, c, d
    if mode == "CORNERS_WIDTH_FIRST":
        return b, a, d, c
    if mode == "CENTER_SIZE_HEIGHT_FIRST":
        return a - c / 2, b - d / 2, a + c / 2, b + d / 2
    if mode == "CENTER_SIZE_WIDTH_FIRST":
        return b - d / 2, a - c / 2, b + d / 2, a + c / 2
    raise ValueError(f"box coordinate mode {mode!r}")


def crop_resize(
    x: Tensor,
    roi: Tensor,
    target_height: int = 1,
    target_width: int = 1,
    normalized_coordinates: bool = False,
    spatial_scale: float = 1.0,
    box_coordinate_mode: str = "CORNERS_HEIGHT_FIRST",
    sampling_mode: str = "DEFAULT",
    pad_value: float = 0.0,
) -> Tensor:
    """iOS15: boxes [N, 1, 4, 1, 1] cut from every image → [N, B, C, h, w]; with five entries the first names one."""
    boxes = roi.reshape(roi.shape[0], -1).float()
    count, batch = boxes.shape[0], x.shape[0]
    chosen = boxes[:, 0].long()[:, None] if boxes.shape[1] == 5 else torch.arange(batch).expand(count, batch)
    each = boxes[:, -4:].repeat_interleave(chosen.shape[1], 0)
    crops = crop_resize_ios17(
        x, each, chosen.reshape(-1), target_height, target_width, normalized_coordinates, spatial_scale,
        box_coordinate_mode, sampling_mode, pad_value,
    )  # fmt: skip
    return crops.reshape(count, chosen.shape[1], *crops.shape[1:])


def crop_resize_ios17(
    x: Tensor,
    boxes: Tensor,
    box_indices: Tensor | None = None,
    target_height: int = 1,
    target_width: int = 1,
    normalized_coordinates: bool = False,
    spatial_scale: float = 1.0,
    box_coordinate_mode: str = "CORNERS_HEIGHT_FIRST",
    sampling_mode: str = "DEFAULT",
    pad_value: float = 0.0,
) -> Tensor:
    """iOS17: boxes [N, 4], each cut from the image that ``box_indices`` names → [N, C, h, w]."""
    chosen = torch.arange(boxes.shape[0]) if box_indices is None else box_indices.long()
    images = x[chosen]
    height, width = images.shape[-2:]
    top, left, bottom, right = (edge * spatial_scale for edge in _corners(boxes.float(), box_coordinate_mode))
    if normalized_coordinates:
        top, bottom = top * (height - 1), bottom * (height - 1)
        left, right = left * (width - 1), right * (width - 1)
    rows = positions(top[:, None], (bottom - top)[:, None], target_height, sampling_mode)[:, :, None].expand(
        -1, -1, target_width
    )
    columns = positions(left[:, None], (right - left)[:, None], target_width, sampling_mode)[:, None, :].expand(
        -1, target_height, -1
    )
    inside = (rows >= 0) & (rows <= height - 1) & (columns >= 0) & (columns <= width - 1)
    crops = sample(images, rows, columns, "bilinear", "border", 0.0)
    return crops.masked_fill(~inside[:, None], pad_value)
