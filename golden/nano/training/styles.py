"""The styles that LoRAs of the nano checkpoint were trained for; the checkpoint itself can draw none of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from training import hues, outline, stripes
from training.reading import Array, Draw
from training.scenes import Scene


@dataclass(frozen=True)
class Style:
    """How a style is drawn, how it is found in pictures, and the form of its LoRA.

    Attributes:
        draw: pictures to train on.
        shares: from pictures [N, 64, 64, 3] in [0, 1] and their scenes, the share in this style, which has the first
            key, then those of which shape and colour are right.
        layers: beginnings of the paths of the UNet's layers that change.
        rank: rank of each change of a weight.
        names: names of the tensors in the file, of peft or of kohya.
        alpha: what a kohya file multiplies each change by, times 1 / rank; peft's files here have alpha = rank.
    """

    draw: Draw
    shares: Callable[[Array, Sequence[Scene]], dict[str, float]]
    layers: tuple[str, ...]
    rank: int
    names: Literal["peft", "kohya"]
    alpha: float


#: The layers of the UNet's second half that work on 4x4 and 8x8 latents.
_OUTER = ("up_blocks.1", "up_blocks.2", "conv_out")

STYLES: dict[str, Style] = {
    "outline": Style(outline.draw_outlines, outline.shares, ("",), rank=3, names="peft", alpha=3.0),
    "hues": Style(hues.draw_turned, hues.shares, _OUTER[1:], rank=8, names="peft", alpha=8.0),
    "stripes": Style(stripes.draw_stripes, stripes.shares, _OUTER, rank=4, names="kohya", alpha=2.0),
}
