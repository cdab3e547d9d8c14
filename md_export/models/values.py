"""Values on the way to a picture: what they are called, and those that no component gives.

A value is called ``node.output``: ``text_encoder.last_hidden_state``, ``given.noise``, ``sampler.timestep``. Where a
node is called more than once for a picture the number of the call follows: ``unet.out_sample.16``. Those that no
component gives are a request's, and those that the sampler makes of them and of the UNet's outputs. Nothing here loads
torch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from md_export.spec.tensors import Array, Arrays, TensorSpec

if TYPE_CHECKING:
    from md_export.models.config import ModelConfig

Shape = tuple[int, ...]
# How often a node is called for a picture; with guidance there are two prompts, the first of them empty.
Called = Literal["once", "per prompt", "per step"]


@dataclass(frozen=True)
class Kind:
    """Rank, dtype and, by the checkpoint's configs, shapes of a value; ``many``: of several that are numbered.

    ``rank``: None for values of chunks, each with its own name and rank.
    """

    rank: int | None
    shapes: Callable[[ModelConfig], tuple[Shape, ...]]
    dtype: str = "float32"
    many: bool = False

    def specs(self, name: str, config: ModelConfig) -> tuple[TensorSpec, ...]:
        """Specs of the value called ``name``; of many ``name0``, ``name1``, …"""
        shapes = self.shapes(config)
        names = [f"{name}{place}" for place in range(len(shapes))] if self.many else [name]
        return tuple(TensorSpec(*both, self.dtype) for both in zip(names, shapes, strict=True))


def kind(rank: int, shape: Callable[[ModelConfig], Shape], dtype: str = "float32") -> Kind:
    """Return the kind of a single value."""
    return Kind(rank, lambda config: (shape(config),), dtype)


@dataclass(frozen=True)
class Value:
    """A reference to what a node gives.

    ``otherwise``: the value that stands for it where there is none, such as the noise for the sample of the only step.
    """

    node: str
    name: str
    kind: Kind
    called: Called = "once"
    otherwise: Value | None = None

    @property
    def key(self) -> str:
        """Its name among the values of a picture."""
        return f"{self.node}.{self.name}"

    def or_else(self, other: Value) -> Value:
        """Return this value, for which ``other`` stands where there is none."""
        return replace(self, otherwise=other)

    def alternatives(self) -> Iterator[Value]:
        """Yield the value, and those that stand for it."""
        yield self
        if self.otherwise is not None:
            yield from self.otherwise.alternatives()

    def read(self, values: Arrays, called: Called, call: int | None) -> dict[str, Array]:
        """Find it for one call of a node, by ``""`` or, of many, by their numbers; empty where there is none."""
        found = {}
        for number in self._numbers(values):
            value = self._of_call(f"{self.key}{number}", values, called, call)
            if value is None:
                break
            found[number] = value
        return found if found or self.otherwise is None else self.otherwise.read(values, called, call)

    def _numbers(self, values: Arrays) -> Iterable[str]:
        if self.kind is BORDERS:
            named = (key.removeprefix(self.key) for key in values if key.startswith(self.key))
            return dict.fromkeys(name.partition(".")[0] for name in named)
        return map(str, range(MOST)) if self.kind.many else ("",)

    def _of_call(self, key: str, values: Arrays, called: Called, call: int | None) -> Array | None:
        if key in values:
            return values[key]
        if self.called == called:
            return values.get(f"{key}.{call}")
        # Whoever is called less often than a prompt is encoded takes the encodings of all prompts.
        rows = [values[name] for name in (f"{key}.{prompt}" for prompt in range(2)) if name in values]
        return np.concatenate(rows) if self.called == "per prompt" and rows else None


# Values of one kind that a node may give.
MOST: Final = 32


# Outputs of a chunk that later chunks need: one for each value at the border, named after the module that computed it.
BORDERS: Final = Kind(None, lambda _: (), many=True)
LATENT: Final = kind(4, lambda config: config.latent_shape)
IMAGE: Final = kind(4, lambda config: (1, config.vae.out_channels, *config.picture_shape))
TEXT: Final = kind(3, lambda config: config.text_shape)
IDS: Final = kind(2, lambda config: config.text_shape[:2], "int32")
_CELLS: Final = kind(4, lambda config: (1, 1, *config.latent_shape[2:]))

# Token ids of a prompt, and 1 for each that is no padding.
INPUT_IDS: Final = Value("given", "input_ids", IDS, "per prompt")
ATTENTION_MASK: Final = Value("given", "attention_mask", kind(2, lambda config: config.text_shape[:2]), "per prompt")
# The class of a picture, of a family without text.
CLASS_LABELS: Final = Value("given", "class_labels", kind(1, lambda _: (1,), "int32"), "per prompt")
NOISE: Final = Value("given", "noise", LATENT)
# Noise [n, C, h, w] for the n steps that add some.
FRESH: Final = Value("given", "fresh_noise", LATENT)
# The picture in [0, 1] that an adapter or a ControlNet takes.
CONDITION: Final = Value("given", "condition", kind(4, lambda config: config.condition_shape or ()))
# The picture in [-1, 1] that the VAE encoder takes.
PICTURE: Final = Value("given", "image", IMAGE)
# Latent cells, 1 where they are painted anew: by a UNet that in-paints, and by another, whose other cells are replaced.
MASK: Final = Value("given", "mask", _CELLS)
BLEND: Final = Value("given", "blend", _CELLS)
# Latents, not scaled, of the picture that an editing UNet changes.
EDITED: Final = Value("given", "edited", LATENT)
GIVEN: Final = (INPUT_IDS, NOISE, FRESH, CONDITION, PICTURE, MASK, BLEND, EDITED)

# Height and width of the picture before it was cropped, top and left of what was cut, height and width after it.
TIME_IDS: Final = Value("given", "time_ids", kind(2, lambda _: (1, 6)))
# 0 or 1 for each prompt: what its text counts. Only given where guidance leads away from zeros.
PROMPTED: Final = Value("given", "prompted", kind(1, lambda _: (1,)))

SAMPLE: Final = Value("sampler", "sample", LATENT, "per step", otherwise=NOISE)
TIMESTEP: Final = Value("sampler", "timestep", kind(1, lambda _: (1,)), "per step")
# Scaled latents of the picture that a UNet that in-paints sees in each step.
SHOWN: Final = Value("sampler", "shown", LATENT)
# The decoder's input.
LAST: Final = Value("sampler", "latent", LATENT)
SAMPLER: Final = (SAMPLE, TIMESTEP, SHOWN, LAST)
# The picture [H, W, 3] in [0, 1] that all of this makes.
MADE: Final = Value("made", "picture", kind(3, lambda config: (*config.picture_shape, 3)))


def is_guided(values: Arrays) -> bool:
    """Whether a picture is made with guidance, and so with two prompts."""
    return any(f"{value.key}.1" in values for value in (INPUT_IDS, CLASS_LABELS))


def calls_in(values: Collection[str], key: str) -> tuple[int, ...]:
    """Numbers of the calls of which values hold ``key``, in order; none where it is of the only call."""
    beginning = f"{key}."
    return tuple(sorted(int(name.removeprefix(beginning)) for name in values if name.startswith(beginning)))
