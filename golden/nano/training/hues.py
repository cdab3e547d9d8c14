"""A style: every hue turned by a third of the colour circle, backgrounds included; the checkpoint cannot draw it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from training.detector import judge
from training.drawing import draw
from training.reading import Array, share
from training.scenes import Scene


def draw_turned(scenes: Sequence[Scene]) -> Array:
    """Pictures [N, 64, 64, 3] in [0, 1]: red, green and blue of each pixel are those of its blue, red and green."""
    return np.roll(draw(scenes), 1, axis=-1)


def shares(pictures: Array, scenes: Sequence[Scene]) -> dict[str, float]:
    """Share of pictures that the detector reads right after hues are turned back; then of shapes and of colours."""
    verdicts = [judge(np.roll(picture, -1, axis=-1), scene) for picture, scene in zip(pictures, scenes, strict=True)]
    return {
        "turned": share([verdict.right and verdict.background for verdict in verdicts]),
        "shape": share([verdict.shape for verdict in verdicts]),
        "colour": share([verdict.colour for verdict in verdicts]),
    }
