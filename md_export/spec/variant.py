"""Variants of a checkpoint with the same weights: picture size, the timestep of one step, CLIP skip, chunks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from md_export.errors import RecipeError
from md_export.spec.names import MOST_CHUNKS

# Pixels: one side of a square picture, or width and height.
Size = int | tuple[int, int]
# Number of files that the denoiser is cut into; auto: the smallest number that keeps each below 1 GB.
Chunks = int | Literal["auto"]
_LARGEST_SIDE: Final = 8192
_MOST_LAYERS: Final = 256


@dataclass(frozen=True)
class Variant:
    """Changes to a checkpoint by a recipe; the defaults leave it as it was trained.

    Attributes:
        size: picture size; None for the size that the checkpoint was trained for.
        timestep: timestep of the UNet call in one step; None for the last. Some distilled models were trained for
            another: Hyper-SD's for 800.
        clip_skip: number of layers to leave out at the end of the text encoder. 1 is diffusers' ``clip_skip=1``, the
            "CLIP skip 2" of other programs.
        guidance: the sampler's guidance, for UNets that embed it (LCM); others do not depend on it.
        chunks: number of files that the UNet or the transformer is cut into; None for one file.
    """

    size: Size | None = None
    timestep: int | None = None
    clip_skip: int = 0
    guidance: float | None = None
    chunks: Chunks | None = None

    def __post_init__(self) -> None:
        """Raise RecipeError, which names the field, for values that no checkpoint supports."""
        if any(not 0 < side <= _LARGEST_SIDE for side in self.sides or ()):
            raise RecipeError(
                f"size: {self.size!s:.40} is not a picture size; give pixels, up to {_LARGEST_SIDE}, as 512 or as "
                "width and height"
            )
        if not 0 <= self.clip_skip <= _MOST_LAYERS:
            raise RecipeError(f"clip_skip: {self.clip_skip!s:.20} is not a number of layers to leave out; give 0 or 1")
        if isinstance(self.chunks, int) and not 1 < self.chunks <= MOST_CHUNKS:
            raise RecipeError(
                f"chunks: {self.chunks!s:.20} is not a number of chunks; give 2 to {MOST_CHUNKS}, auto, or leave it out"
            )

    @property
    def sides(self) -> tuple[int, int] | None:
        """Width and height of the pictures in pixels; None if no size is set."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    @property
    def changes(self) -> dict[str, Size | Chunks]:
        """Fields that differ from the defaults, without the sampler's guidance."""
        found: dict[str, Size | Chunks] = {} if self.size is None else {"size": self.size}
        if self.timestep is not None:
            found["timestep"] = self.timestep
        found |= {"clip_skip": self.clip_skip} if self.clip_skip else {}
        return found if self.chunks is None else found | {"chunks": self.chunks}

    @property
    def flags(self) -> str:
        """Command-line options, each followed by a space: ``--size 512x768 --clip-skip 1 ``."""
        words = {name: _in_words(value) for name, value in self.changes.items()}
        return "".join(f"--{name.replace('_', '-')} {word} " for name, word in words.items())

    @property
    def suffix(self) -> str:
        """Suffix for names of recipes: ``-512``, ``-512x768``, ``-t800``, ``-skip1``, ``-chunks2``, concatenated."""
        letters = {"size": "", "timestep": "t", "clip_skip": "skip", "chunks": "chunks"}
        return "".join(f"-{letters[name]}{_in_words(value)}" for name, value in self.changes.items())


# The checkpoint without changes.
TRAINED: Final = Variant()


def size_in_words(size: Size) -> str:
    """Return a size as ``512``, or as ``512x768``: width and height in pixels."""
    if isinstance(size, int) or size[0] == size[1]:
        return str(size if isinstance(size, int) else size[0])
    return f"{size[0]}x{size[1]}"


def _in_words(value: Size | Chunks) -> str:
    return value if isinstance(value, str) else size_in_words(value)
