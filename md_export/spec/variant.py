"""Variants of a checkpoint that need no other weights: size of its pictures, the only timestep, CLIP skip, chunks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from md_export.errors import RecipeError
from md_export.spec.names import MOST_CHUNKS

# Pixels: one side of a square picture, or width and height.
Size = int | tuple[int, int]
# Number of files that the denoiser is cut into; auto: as many as keep each below 1 GB.
Chunks = int | Literal["auto"]
_LARGEST_SIDE: Final = 8192
_MOST_LAYERS: Final = 256


@dataclass(frozen=True)
class Variant:
    """Changes of a checkpoint that a recipe asks for; the defaults leave it as it was trained.

    Attributes:
        size: of the pictures; None: what the checkpoint was trained for.
        timestep: at which the UNet is called for one step, the last by default. Some distilled models were trained for
            another: Hyper-SD's for 800.
        clip_skip: number of the text encoder's last layers that are left out. 1 is diffusers' ``clip_skip=1``, the
            "CLIP skip 2" of other programs.
        guidance: that the sampler asks for, for UNets that embed it (LCM); no other depends on it.
        chunks: number of files that the UNet or the transformer is cut into; None: it is one file.
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
                f"size: {self.size!s:.40} is no size of a picture; give pixels, up to {_LARGEST_SIDE}, as 512 or as "
                "width and height"
            )
        if not 0 <= self.clip_skip <= _MOST_LAYERS:
            raise RecipeError(f"clip_skip: {self.clip_skip!s:.20} is no number of layers to leave out; give 1, or 0")
        if isinstance(self.chunks, int) and not 1 < self.chunks <= MOST_CHUNKS:
            raise RecipeError(
                f"chunks: {self.chunks!s:.20} is no number of chunks; give 2 to {MOST_CHUNKS}, auto, or leave it out"
            )

    @property
    def sides(self) -> tuple[int, int] | None:
        """Width and height of the pictures in pixels; None where no size is asked for."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    @property
    def changes(self) -> dict[str, Size | Chunks]:
        """The fields that differ from the checkpoint as it was trained, without the sampler's guidance."""
        found: dict[str, Size | Chunks] = {} if self.size is None else {"size": self.size}
        if self.timestep is not None:
            found["timestep"] = self.timestep
        found |= {"clip_skip": self.clip_skip} if self.clip_skip else {}
        return found if self.chunks is None else found | {"chunks": self.chunks}

    @property
    def flags(self) -> str:
        """The options of the command line, with a blank after each: ``--size 512x768 --clip-skip 1 ``."""
        words = {name: _in_words(value) for name, value in self.changes.items()}
        return "".join(f"--{name.replace('_', '-')} {word} " for name, word in words.items())

    @property
    def suffix(self) -> str:
        """Return what names of recipes get: ``-512``, ``-512x768``, ``-t800``, ``-skip1``, ``-chunks2``, in a row."""
        letters = {"size": "", "timestep": "t", "clip_skip": "skip", "chunks": "chunks"}
        return "".join(f"-{letters[name]}{_in_words(value)}" for name, value in self.changes.items())


# As the checkpoint was trained.
TRAINED: Final = Variant()


def size_in_words(size: Size) -> str:
    """Write a size as ``512``, or as ``512x768``: width and height in pixels."""
    if isinstance(size, int) or size[0] == size[1]:
        return str(size if isinstance(size, int) else size[0])
    return f"{size[0]}x{size[1]}"


def _in_words(value: Size | Chunks) -> str:
    return value if isinstance(value, str) else size_in_words(value)
