"""Signed distances of the six shapes (negative inside), in pixels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


def signed_distance(shape: str, dx: Array, dy: Array, radius: float) -> Array:
    """Distance in pixels of each point (dx, dy from the centre, y down) to the outline."""
    if shape == "circle":
        return np.hypot(dx, dy) - np.float32(radius)
    if shape == "ring":
        return np.abs(np.hypot(dx, dy) - np.float32(0.78 * radius)) - np.float32(0.27 * radius)
    return _polygon_distance(_vertices(shape) * np.float32(radius), dx, dy)


def _vertices(shape: str) -> Array:
    """Corners [N, 2] of a polygon of about unit radius, in drawing order."""
    if shape == "square":
        return _corners((-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88))
    if shape == "triangle":
        return _spokes(np.full(3, 1.2))
    if shape == "star":
        return _spokes(np.tile([1.2, 0.52], 5))
    if shape == "cross":
        return _cross(arm=1.02, half_width=0.33)
    raise ValueError(f"unknown shape {shape!r}")


def _corners(*points: tuple[float, float]) -> Array:
    return np.array(points, np.float32)


def _spokes(radii: NDArray[np.float64]) -> Array:
    angles = np.arange(len(radii)) * (2 * np.pi / len(radii)) - np.pi / 2
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], 1).astype(np.float32)


def _cross(arm: float, half_width: float) -> Array:
    a, w = arm, half_width
    quarter = np.array([(-w, -a), (w, -a), (w, -w)], np.float32)
    turns = (np.linalg.matrix_power(np.array([[0, 1], [-1, 0]]), n) for n in range(4))
    corners: Array = np.concatenate([quarter @ turn for turn in turns]).astype(np.float32)
    return corners


def _polygon_distance(corners: Array, dx: Array, dy: Array) -> Array:
    """Exact signed distance: nearest edge, sign by crossing count."""
    nearest = np.full(dx.shape, np.inf, np.float32)
    inside = np.zeros(dx.shape, bool)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, 0), strict=True):
        ex, ey = x1 - x0, y1 - y0
        along = np.clip(((dx - x0) * ex + (dy - y0) * ey) / (ex * ex + ey * ey), 0, 1)
        nearest = np.minimum(nearest, np.hypot(dx - x0 - along * ex, dy - y0 - along * ey))
        if ey != 0:
            spans = (dy < y0) != (dy < y1)
            inside ^= spans & (dx < x0 + (dy - y0) * (ex / ey))
    return np.where(inside, -nearest, nearest).astype(np.float32)
